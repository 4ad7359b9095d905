"""The one door between other threads and a pool's owner."""

import collections
import threading
from collections.abc import Callable


class Inbox:
    """Work that other threads have left for the owner, in the order in which it came."""

    def __init__(self, wake: Callable[[], None]):
        """Makes an empty inbox; `wake` is called, on the posting thread, after every post."""
        self._wake = wake
        self._work: collections.deque[Callable[[], None]] = collections.deque()
        self._has_come = threading.Event()

    def post(self, work: Callable[[], None]) -> None:
        """Leaves `work` for the owner. Any thread."""
        self._work.append(work)
        self._has_come.set()
        self._wake()

    def drain(self) -> None:
        """Does all that has been left, and what that leaves in turn. The owner alone."""
        self._has_come.clear()
        while self._work:
            self._work.popleft()()

    def wait(self, timeout_s: float) -> None:
        """Drains as soon as anything has been left, or after `timeout_s`. The owner alone."""
        self._has_come.wait(timeout_s)
        self.drain()
