"""`memserve bench simulate`: how policies route, in simulated time. Never loads jax."""

import json
from typing import Any

import click
import rich.console

from memserve_jax.bench import simulate
from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.cli.bench_options import check_folders, progress_bar, write_json
from memserve_jax.core.errors import ConfigError, MemServeError
from scheduler.policies import POLICIES

_USUAL = ("split", "hot", "overload", "planner")
_WIDTH = 140  # characters that the tables need


@click.command("simulate")
@click.option(
    "--parts", default=",".join(_USUAL), show_default=True,
    help="split: 64 prefix groups from a cold start; hot: one prefix takes 80 % of the load; "
    "overload: up to three times what the instances can take; "
    "planner: long prompts, then long answers, with roles that move; "
    "trace: a recorded trace (--trace).",
)  # fmt: skip
@click.option(
    "--policy", type=click.Choice(list(POLICIES)), default="min_ttft", show_default=True,
    help="The one whose bounds are checked.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--quick", is_flag=True, help="Fewer requests.")
@click.option("--trace", type=click.Path(dir_okay=False), help="JSONL as Mooncake publishes it.")
@click.option(
    "--trace-requests", type=click.IntRange(min=1), default=1000,
    show_default=True, help="Of the trace, from its beginning.",
)  # fmt: skip
@click.option("--json", "json_path", help="Write the reports as JSON; - is stdout.")
def command(parts: str, json_path: str | None, **values: Any) -> None:
    """Route requests with the scheduler's own classes to instances in simulated time.

    Instances batch, cache and evict like real ones, and take the time that a cost model says:
    the same options give the same numbers anywhere. Exits 1 if a bound is broken.
    """
    check_folders(json_path, None)
    options = SimulateOptions(parts=_parts(parts), **values)
    with progress_bar("simulate") as progress:
        reports = simulate.run(options, progress)
    console = rich.console.Console(stderr=json_path == "-", highlight=False)
    console.width = max(console.width, _WIDTH)
    for report in reports:
        console.print(report.table())
        for bound in report.bounds:
            console.print(str(bound), markup=False)
    if json_path:
        write_json(json_path, json.dumps([report.to_mapping() for report in reports], indent=1))
    broken = [bound for report in reports for bound in report.bounds if not bound.holds]
    if broken:
        raise MemServeError(f"{len(broken)} bounds are broken; first: {broken[0]}")


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if not set(parts) <= set(simulate.PARTS) or len(set(parts)) < len(parts):
        allowed = ",".join(simulate.PARTS)
        raise ConfigError(f"--parts: got {text!r}, allowed: some of {allowed}")
    return parts
