"""A tally against plain sums."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memserve_jax.telemetry import tally as tally_module
from memserve_jax.telemetry.metric import Distribution, Kind, Metric, Reading
from memserve_jax.telemetry.tally import Histogram, Tally

COUNTER = Metric(
    name="memserve_things_total",
    kind=Kind.COUNTER,
    meaning="m",
    when_bad="b",
    labels=("name", "code"),
)
PLAIN = Metric(
    name="memserve_plain_total", kind=Kind.COUNTER, meaning="m", when_bad="b", labels=("name",)
)
HISTOGRAM = Metric(
    name="memserve_time_seconds",
    kind=Kind.HISTOGRAM,
    meaning="m",
    when_bad="b",
    labels=("name",),
    buckets=(1.0, 2.0, 4.0),
)
GAUGE = Metric(name="memserve_now", kind=Kind.GAUGE, meaning="m", when_bad="b")


def fresh() -> Tally:
    return Tally([COUNTER, PLAIN, HISTOGRAM], prefix=("p0",))


def test_what_has_one_series_is_there_from_the_start():
    assert list(fresh().readings()) == [
        Reading(PLAIN, ("p0",), 0.0),
        Reading(HISTOGRAM, ("p0",), Distribution((0, 0, 0, 0), 0.0)),
    ]


def test_labels_are_counted_apart():
    tally = fresh()
    tally.add(COUNTER, "OK")
    tally.add(COUNTER, "OK", amount=2.5)
    tally.add(COUNTER, "INTERNAL")
    found = [reading for reading in tally.readings() if reading.metric is COUNTER]
    assert [(each.labels, each.value) for each in found] == [
        (("p0", "OK"), 3.5),
        (("p0", "INTERNAL"), 1.0),
    ]


def test_a_wrong_number_of_labels_and_a_gauge_are_bugs():
    with pytest.raises(AssertionError, match="got 2 labels, wanted 1"):
        fresh().add(COUNTER, "a", "b")
    with pytest.raises(AssertionError, match="memserve_now"):
        Tally([GAUGE])
    with pytest.raises(KeyError):
        fresh().add(GAUGE)


def test_series_are_bounded(monkeypatch):
    monkeypatch.setattr(tally_module, "MAX_SERIES", 3)
    tally = Tally([COUNTER])
    for number in range(10):
        tally.add(COUNTER, f"i{number}", "OK")
    tally.add(COUNTER, "i0", "OK")
    counts = {reading.labels: reading.value for reading in tally.readings()}
    assert counts == {
        ("i0", "OK"): 2.0,
        ("i1", "OK"): 1.0,
        ("i2", "OK"): 1.0,
        ("other", "other"): 7.0,
    }


@given(st.lists(st.tuples(st.floats(0, 8), st.integers(1, 3))))
def test_a_histogram_sorts_values_below_or_at_each_bound(values):
    histogram = Histogram((1.0, 2.0, 4.0))
    for value, times in values:
        histogram.observe(value, times)
    found = histogram.distribution
    edges = [-math.inf, 1.0, 2.0, 4.0, math.inf]
    for index, count in enumerate(found.counts):
        low, high = edges[index], edges[index + 1]
        assert count == sum(times for value, times in values if low < value <= high)
    assert found.total == pytest.approx(sum(value * times for value, times in values))
