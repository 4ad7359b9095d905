"""One collective at a time in a process, first come first served."""

import collections
import threading
from collections.abc import Callable, Hashable


class Turns:
    """Hands out the one turn of this process. Any thread may make every call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: Hashable | None = None
        self._queue: collections.OrderedDict[Hashable, Callable[[], None]]
        self._queue = collections.OrderedDict()

    def take(self, key: Hashable, granted: Callable[[], None]) -> None:
        """Calls `granted`, once, when `key` has the turn: now, or when others gave it back."""
        with self._lock:
            assert key != self._holder and key not in self._queue, f"{key} is here already"
            self._queue[key] = granted
        self._grant_next()

    def give_back(self, key: Hashable) -> None:
        """Ends `key`'s turn, or its wait for one; does nothing where it has neither."""
        with self._lock:
            self._queue.pop(key, None)
            if self._holder == key:
                self._holder = None
        self._grant_next()

    def has(self, key: Hashable) -> bool:
        """Whether it is `key`'s turn."""
        with self._lock:
            return self._holder == key

    @property
    def num_waiting(self) -> int:
        """Who wait for it."""
        with self._lock:
            return len(self._queue)

    def _grant_next(self) -> None:
        with self._lock:
            if self._holder is not None or not self._queue:
                return
            self._holder, granted = self._queue.popitem(last=False)
        granted()
