"""Time as an argument: what reads a clock is given one, so tests need no sleep."""

import time
from typing import Protocol, runtime_checkable


@runtime_checkable
class Clock(Protocol):
    """A monotonic clock."""

    def now_s(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...


class SystemClock:
    """The process's own monotonic clock."""

    def now_s(self) -> float:
        """Returns `time.monotonic()`."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told."""

    def __init__(self, start_s: float = 0.0):
        self._now_s = start_s

    def now_s(self) -> float:
        """Returns the time last set."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Moves time on by `seconds`."""
        self._now_s += seconds
