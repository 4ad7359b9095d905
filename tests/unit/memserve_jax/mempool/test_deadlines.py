"""What is not over in time is called back; what is over is not."""

import threading

import pytest

from memserve_jax.core.clock import SystemClock
from memserve_jax.mempool.deadlines import Deadlines

PATIENCE_S = 30.0


@pytest.fixture
def deadlines():
    deadlines = Deadlines("test", SystemClock())
    yield deadlines
    deadlines.close()


def test_what_is_late_is_called_back_once(deadlines):
    late = threading.Event()
    deadlines.set("a", 0.0, late.set)
    assert late.wait(PATIENCE_S)
    assert deadlines.num_pending == 0


def test_what_is_over_is_not(deadlines):
    calls, late = [], threading.Event()
    deadlines.set("a", PATIENCE_S, lambda: calls.append("a"))
    deadlines.clear("a")
    deadlines.clear("never set")
    deadlines.set("b", 0.0, late.set)
    assert late.wait(PATIENCE_S)
    assert not calls and deadlines.num_pending == 0


def test_setting_again_replaces(deadlines):
    late = threading.Event()
    deadlines.set("a", PATIENCE_S, lambda: None)
    deadlines.set("a", 0.0, late.set)
    assert late.wait(PATIENCE_S)


def test_a_callback_that_fails_stops_no_other(deadlines, caplog):
    late = threading.Event()
    deadlines.set("a", 0.0, lambda: 1 // 0)
    deadlines.set("b", 0.001, late.set)
    assert late.wait(PATIENCE_S)
    assert "a callback failed" in caplog.text


def test_nothing_is_late_after_the_close():
    deadlines, calls = Deadlines("test", SystemClock()), []
    deadlines.set("a", PATIENCE_S, lambda: calls.append("a"))
    deadlines.close()
    deadlines.close()
    assert not calls
