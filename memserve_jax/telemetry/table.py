"""Tables of metrics in a document: `python -m memserve_jax.telemetry.table FILE` renews them."""

import pathlib
import re
import sys
from collections.abc import Iterable

from memserve_jax.telemetry.counter_metrics import COUNTERS
from memserve_jax.telemetry.instance_metrics import INSTANCE_METRICS
from memserve_jax.telemetry.metric import Metric
from memserve_jax.telemetry.scheduler_metrics import SCHEDULER_METRICS

TABLES = {  # what follows `metrics of` in a document's marker -> the metrics there
    "the scheduler": tuple(SCHEDULER_METRICS.values()),
    "an instance": tuple(
        metric for metric in INSTANCE_METRICS.values() if metric not in COUNTERS.values()
    ),
    "an instance, totals": tuple(COUNTERS.values()),
}
_MARKED = re.compile(r"(<!-- metrics of ([^>]+) -->\n)(.*?)(<!-- end of metrics -->)", re.DOTALL)


def to_markdown(metrics: Iterable[Metric]) -> str:
    """Returns a table of `metrics`."""
    lines = [
        "| name | type | labels | meaning | when it is bad |",
        "|---|---|---|---|---|",
    ]
    for metric in metrics:
        vllm = f" As `{metric.vllm}`." if metric.vllm else ""
        cells = (
            f"`{metric.name}`",
            metric.kind.value,
            ", ".join(f"`{label}`" for label in metric.labels) or "-",
            metric.meaning + vllm,
            metric.when_bad,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    """Returns `text` with every marked table as the code has it."""
    return _MARKED.sub(lambda found: found[1] + to_markdown(TABLES[found[2]]) + found[4], text)


def main(path: str) -> None:
    """Renews the tables of one file."""
    file = pathlib.Path(path)
    file.write_text(renewed(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
