"""Simulated time: in order, and equal times in the order they were set."""

import pytest

from memserve_jax.bench.timeline import Timeline


def test_events_come_in_order_and_may_set_others():
    timeline, seen = Timeline(), []
    timeline.at(2.0, lambda: seen.append((timeline.now_s, "late")))
    timeline.at(1.0, lambda: timeline.after(1.0, lambda: seen.append((timeline.now_s, "later"))))
    timeline.at(2.0, lambda: seen.append((timeline.now_s, "late too")))
    timeline.run(lambda: False)
    assert seen == [(2.0, "late"), (2.0, "late too"), (2.0, "later")]


def test_it_stops_when_told_and_never_goes_back():
    timeline, seen = Timeline(), []
    for time_s in (3.0, 1.0, 2.0):
        timeline.at(time_s, lambda time_s=time_s: seen.append(time_s))
    timeline.run(lambda: len(seen) == 2)
    assert (seen, timeline.now_s) == ([1.0, 2.0], 2.0)
    with pytest.raises(AssertionError, match="has passed"):
        timeline.at(1.0, lambda: None)
