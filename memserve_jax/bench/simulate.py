"""`memserve bench simulate`: routing policies at sizes that no machine here has, in simulated time.

The scheduler's own router, flights, load table, trees, cost model and policies route requests to
simulated instances. Add a part by writing its function and naming it in `PARTS`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from memserve_jax.bench.simulate_hot import simulate_hot
from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.bench.simulate_overload import simulate_overload
from memserve_jax.bench.simulate_planner import simulate_planner
from memserve_jax.bench.simulate_report import PartReport
from memserve_jax.bench.simulate_split import simulate_split
from memserve_jax.bench.simulate_trace import simulate_trace

Progress = Callable[[int, int | None, str], None]  # done, total, what


class Part(Protocol):
    """One question, answered by some runs. Pure: the same options give the same report."""

    def __call__(self, options: SimulateOptions, told: Callable[[str], None], /) -> PartReport:
        """Simulates; calls `told` with a line before each run."""
        ...


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "split": simulate_split,
        "hot": simulate_hot,
        "overload": simulate_overload,
        "planner": simulate_planner,
        "trace": simulate_trace,
    }
)


def run(options: SimulateOptions, progress: Progress | None = None) -> list[PartReport]:
    """Returns the reports of the parts that `options` names, in that order."""
    reports: list[PartReport] = []
    for number, part in enumerate(options.parts):

        def told(what: str, number: int = number, part: str = part) -> None:
            if progress:
                progress(number, len(options.parts), f"{part}: {what}")

        reports.append(PARTS[part](options, told))
    return reports
