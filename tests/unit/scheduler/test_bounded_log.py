"""Lines within bounds."""

import logging

import pytest

from memserve_jax.core.clock import ManualClock
from scheduler.bounded_log import BoundedLog


def test_what_is_too_much_is_counted_instead(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    clock = ManualClock(5.0)
    lines = BoundedLog(logging.getLogger("test"), clock, burst=2, per_s=0.5)
    for number in range(5):
        lines.say(logging.INFO, f"line {number}")
    clock.advance(2.0)
    lines.say(logging.WARNING, "line 5")
    lines.say(logging.WARNING, "line 6")
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.INFO, "line 0"),
        (logging.INFO, "line 1"),
        (logging.WARNING, "line 5 (and 3 more before)"),
    ]
