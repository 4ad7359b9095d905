"""What a metric is, and what was read of one.

The metrics themselves are in two tables, `scheduler_metrics.py` and `instance_metrics.py`: to add
one is to add an entry there, to count it where it happens, and to run
`python -m memserve_jax.telemetry.table docs/operations.md`.
"""

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

_NAME = re.compile(r"memserve_[a-z][a-z0-9_]*[a-z0-9]")
_LABEL = re.compile(r"[a-z][a-z0-9_]*")

# The first labels of every metric of an instance. Not `instance`: that is Prometheus' own, of the
# endpoint, and several instances may share one.
WHOSE = ("instance_name", "role")

# Seconds a request may take: queue, first token, whole answer.
LATENCY_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0),
)
# Seconds between two tokens.
TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
LENGTH_BUCKETS_TOKENS = tuple(
    float(step * 10**power) for power in range(6) for step in (1, 2, 5)
)  # 1 to 500,000


class Kind(enum.StrEnum):
    """What Prometheus calls it."""

    COUNTER = "counter"  # only grows, from 0 at the start of the process
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
    """One metric, by its name on the wire. Each is a constant of its own: compared by identity.

    Labels are words that we choose (tiers, reasons, status codes) or names of instances, so that
    their number is bounded: never a request, a session, a salt or any other text of a client.
    """

    name: str  # after Prometheus' conventions: the unit in it, a counter's ends in _total
    kind: Kind
    meaning: str
    when_bad: str  # what to look at, or to do
    labels: tuple[str, ...] = ()
    vllm: str = ""  # vLLM's metric of the same meaning
    buckets: tuple[float, ...] = ()  # upper bounds of a histogram's, the last one (inf) left out

    def __post_init__(self):
        assert _NAME.fullmatch(self.name), f"{self.name}: not a name"
        assert (self.kind is Kind.COUNTER) == self.name.endswith("_total"), self.name
        assert (self.kind is Kind.HISTOGRAM) == bool(self.buckets), self.name
        assert list(self.buckets) == sorted(set(self.buckets)), self.name
        for label in self.labels:
            assert _LABEL.fullmatch(label) and label not in ("instance", "job", "le"), label


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram holds."""

    counts: tuple[int, ...]  # by bucket, not cumulated; one more than bounds
    total: float  # sum of the values


@dataclass(frozen=True, slots=True)
class Reading:
    """One series of a metric at one moment."""

    metric: Metric
    labels: tuple[str, ...]  # values, in the order of the metric's labels
    value: int | float | Distribution


def by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """Returns `metrics` by name; no two may share one."""
    named: dict[str, Metric] = {}
    for metric in metrics:
        assert metric.name not in named, f"{metric.name}: twice"
        named[metric.name] = metric
    return named
