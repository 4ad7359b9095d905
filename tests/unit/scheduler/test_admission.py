"""Refusals: only where others are served meanwhile, with a delay that spreads those refused."""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memserve_jax.core.config import parse_config
from scheduler.admission import (
    LEAST_RETRY_S,
    MOST_RETRY_S,
    Limits,
    Outlook,
    no_place,
    refusal,
)

LIMITS = Limits(max_waiting=10, max_waiting_per_tenant=4, ttft_s=1.0, honours_deadlines=True)
IDLE = Outlook(
    num_waiting=0, num_of_tenant=0, num_ahead=0, interval_s=0.1, service_s=0.2, busy_s=0.0
)

outlooks = st.builds(
    Outlook,
    num_waiting=st.integers(0, 50),
    num_of_tenant=st.integers(0, 50),
    num_ahead=st.integers(0, 50),
    interval_s=st.floats(0, 5),
    service_s=st.floats(0, 100),
    busy_s=st.just(0.0),
    waited_s=st.floats(0, 10),
)


@given(outlooks, st.none() | st.floats(-1, 100), st.text(max_size=8))
def test_a_refusal_is_of_one_that_would_be_late_and_says_when_to_come_again(outlook, left_s, name):
    error = refusal(outlook, LIMITS, name=name, time_left_s=left_s)
    is_late = outlook.ttft_s > 1.0 or (
        left_s is not None and outlook.ttft_s - outlook.waited_s > left_s
    )
    assert (error is not None) == (is_late and outlook.wait_s > 0)
    if error is not None:
        assert error.reason == ("slo" if outlook.ttft_s > 1.0 else "deadline")
        assert LEAST_RETRY_S <= error.retry_after_s <= 1.25 * MOST_RETRY_S


def test_nobody_is_refused_where_nobody_else_is_served():
    slow = dataclasses.replace(IDLE, service_s=9.0)
    assert refusal(slow, LIMITS, name="r", time_left_s=5.0) is None
    busy = dataclasses.replace(slow, busy_s=0.1)
    assert refusal(busy, LIMITS, name="r", time_left_s=None) is not None


def test_without_a_promise_and_a_deadline_everybody_may_wait():
    limits = dataclasses.replace(LIMITS, ttft_s=None)
    late = dataclasses.replace(IDLE, num_ahead=9, interval_s=100.0)
    assert refusal(late, limits, name="r", time_left_s=None) is None
    error = refusal(late, limits, name="r", time_left_s=2.0)
    assert "expected in 900.20 s, allowed: 2.00 s" in str(error)


def test_the_queue_is_bounded_in_all_and_for_each_tenant():
    assert no_place(IDLE, LIMITS, name="r") is None
    full = no_place(dataclasses.replace(IDLE, num_waiting=10), LIMITS, name="r")
    assert full.reason == "waiting"
    assert "10 requests wait, allowed: 10 (scheduler.queue.max_waiting)" in str(full)
    greedy = no_place(dataclasses.replace(IDLE, num_of_tenant=4), LIMITS, name="r")
    assert greedy.reason == "tenant"
    assert "max_waiting_per_tenant" in str(greedy)


def test_those_refused_together_come_back_apart():
    outlook = dataclasses.replace(IDLE, num_ahead=100)
    delays = {
        refusal(outlook, LIMITS, name=f"r{index}", time_left_s=None).retry_after_s
        for index in range(50)
    }
    assert len(delays) > 40
    assert max(delays) <= 1.25 * min(delays) * 1.01


@pytest.mark.parametrize(("given", "most"), [({}, 7), ({"max_waiting_per_tenant": 2}, 2)])
def test_limits_are_the_configs(given, most):
    config = parse_config(
        {"scheduler": {"queue": {"max_waiting": 7, **given}, "slo": {"ttft_s": 2}}}
    )
    limits = Limits.of(config.scheduler)
    assert limits == Limits(
        max_waiting=7, max_waiting_per_tenant=most, ttft_s=2.0, honours_deadlines=True
    )
