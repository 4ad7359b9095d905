"""Simulated time: what happens when, in an order that does not depend on anything else."""

import heapq
from collections.abc import Callable

from memserve_jax.core.clock import ManualClock


class Timeline:
    """Events in the order of their times; of equal times, in the order they were set."""

    def __init__(self) -> None:
        """Starts at 0 s with nothing to come."""
        self.clock = ManualClock()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_set = 0

    @property
    def now_s(self) -> float:
        """Simulated seconds since the start."""
        return self.clock.now_s()

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Has `event` called so much later."""
        self.at(self.now_s + seconds, event)

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        """Has `event` called at `time_s`, which has not passed."""
        assert time_s >= self.now_s, f"{time_s} s has passed, it is {self.now_s} s"
        heapq.heappush(self._events, (time_s, self._num_set, event))
        self._num_set += 1

    def run(self, until: Callable[[], bool]) -> None:
        """Lets time pass until `until()` holds or nothing is to come."""
        while self._events and not until():
            time_s, _, event = heapq.heappop(self._events)
            self.clock.advance(time_s - self.now_s)
            event()
