"""Arrays that are ready, fail, or never come."""

import threading

import jax.numpy as jnp
import pytest

from memserve_jax.core.clock import ManualClock, SystemClock
from memserve_jax.mempool.readiness import MAX_PAUSE_S, ReadinessWatch
from tests.helpers.arrays import FakeArray

PATIENCE_S = 30.0


@pytest.fixture
def watch():
    watch = ReadinessWatch("test", SystemClock())
    yield watch
    watch.close()


class Outcome:
    def __init__(self):
        self.errors, self.num_late = [], 0
        self.ready, self.late = threading.Event(), threading.Event()

    def on_ready(self, error):
        self.errors.append(error)
        self.ready.set()

    def on_late(self):
        self.num_late += 1
        self.late.set()

    def callbacks(self):
        return {"on_ready": self.on_ready, "on_late": self.on_late}


def test_ready_arrays_are_told_once(watch):
    outcome = Outcome()
    watch.watch([jnp.ones(3), jnp.zeros(2)], timeout_s=PATIENCE_S, **outcome.callbacks())
    assert outcome.ready.wait(PATIENCE_S)
    assert outcome.errors == [None] and not outcome.num_late


def test_no_arrays_are_ready_at_once(watch):
    outcome = Outcome()
    watch.watch([], timeout_s=0.0, **outcome.callbacks())
    assert outcome.ready.wait(PATIENCE_S)
    assert outcome.errors == [None] and not outcome.num_late


def test_an_array_that_failed_says_why(watch):
    outcome, array = Outcome(), FakeArray()
    array.fail(RuntimeError("the peer went away"))
    watch.watch([array], timeout_s=PATIENCE_S, **outcome.callbacks())
    assert outcome.ready.wait(PATIENCE_S)
    assert [str(error) for error in outcome.errors] == ["the peer went away"]


def test_one_that_never_comes_holds_up_no_other(watch):
    stuck, other = Outcome(), Outcome()
    watch.watch([FakeArray()], timeout_s=0.0, **stuck.callbacks())
    assert stuck.late.wait(PATIENCE_S)
    watch.watch([jnp.ones(3)], timeout_s=PATIENCE_S, **other.callbacks())
    assert other.ready.wait(PATIENCE_S)
    assert not stuck.errors and stuck.num_late == 1


def test_one_that_comes_late_is_told_of_too(watch):
    outcome, array = Outcome(), FakeArray()
    watch.watch([array], timeout_s=0.0, **outcome.callbacks())
    assert outcome.late.wait(PATIENCE_S)
    array.arrive()
    assert outcome.ready.wait(PATIENCE_S)
    assert outcome.errors == [None] and outcome.num_late == 1


def test_a_callback_that_fails_ends_nothing(watch, caplog):
    outcome = Outcome()
    watch.watch([], timeout_s=0.0, on_ready=lambda _: 1 // 0, on_late=lambda: None)
    watch.watch([], timeout_s=0.0, **outcome.callbacks())
    assert outcome.ready.wait(PATIENCE_S)
    assert "a callback failed" in caplog.text


def test_the_close_waits_for_no_array():
    watch, outcome = ReadinessWatch("test", SystemClock()), Outcome()
    watch.watch([FakeArray()], timeout_s=PATIENCE_S, **outcome.callbacks())
    watch.close()
    watch.watch([], timeout_s=0.0, **outcome.callbacks())
    assert not outcome.errors and not outcome.num_late


def test_long_waits_are_asked_for_seldom():
    clock = ManualClock()
    watch = ReadinessWatch("test", clock)
    watch.close()
    assert watch._pause_s([]) is None
    outcome = Outcome()
    watch._is_closed = False
    watch.watch([FakeArray()], timeout_s=PATIENCE_S, **outcome.callbacks())
    clock.advance(1.0)
    assert watch._pause_s(watch._fresh) == MAX_PAUSE_S
