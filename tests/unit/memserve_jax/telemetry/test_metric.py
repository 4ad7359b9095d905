"""Metrics keep to the conventions, and their names apart."""

import pytest

from memserve_jax.telemetry.instance_metrics import INSTANCE_METRICS
from memserve_jax.telemetry.metric import WHOSE, Kind, Metric, by_name
from memserve_jax.telemetry.scheduler_metrics import SCHEDULER_METRICS


def metric(**fields) -> Metric:
    given = {"name": "memserve_x_total", "kind": Kind.COUNTER, "meaning": "m", "when_bad": "b"}
    return Metric(**(given | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x_total"},
        {"name": "memserve_x:y_total"},
        {"name": "memserve_x"},
        {"kind": Kind.GAUGE},
        {"name": "memserve_x_seconds", "kind": Kind.HISTOGRAM},
        {"name": "memserve_x_seconds", "kind": Kind.HISTOGRAM, "buckets": (2.0, 1.0)},
        {"labels": ("instance",)},
        {"labels": ("Bad",)},
    ],
)
def test_what_breaks_a_convention_is_refused(fields):
    with pytest.raises(AssertionError):
        metric(**fields)


def test_no_two_share_a_name():
    with pytest.raises(AssertionError, match="memserve_x_total: twice"):
        by_name([metric(), metric()])


def test_the_two_tables_share_no_name_and_say_whose_a_metric_is():
    assert not set(INSTANCE_METRICS) & set(SCHEDULER_METRICS)
    assert all(each.labels[:2] == WHOSE for each in INSTANCE_METRICS.values())
    assert all(name.startswith("memserve_scheduler_") for name in SCHEDULER_METRICS)
    for each in (*INSTANCE_METRICS.values(), *SCHEDULER_METRICS.values()):
        assert (
            each.meaning.endswith(".")
            and each.when_bad.endswith(".")
            and "|" not in (each.meaning + each.when_bad)
        ), each.name
