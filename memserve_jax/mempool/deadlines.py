"""A thread that looks at deadlines and at nothing else, so that it sees what hangs."""

import logging
import threading
from collections.abc import Callable, Hashable

from memserve_jax.core.clock import Clock

MAX_PAUSE_S = 1.0  # the clock may be another than the one that threads wait by

_log = logging.getLogger(__name__)


class Deadlines:
    """Calls back for what is not over in time. Any thread may make every call."""

    def __init__(self, name: str, clock: Clock):
        self._clock = clock
        self._changed = threading.Condition()
        self._pending: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def set(self, key: Hashable, limit_s: float, on_late: Callable[[], None]) -> None:
        """Calls `on_late`, on this thread, unless `clear(key)` comes within `limit_s`."""
        with self._changed:
            self._pending[key] = (self._clock.now_s() + limit_s, on_late)
            self._changed.notify()

    def clear(self, key: Hashable) -> None:
        """Takes note that `key` is over; does nothing where it is not expected."""
        with self._changed:
            self._pending.pop(key, None)

    @property
    def num_pending(self) -> int:
        """What is expected to be over."""
        with self._changed:
            return len(self._pending)

    def close(self) -> None:
        """Ends the thread; nothing is late any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._is_closed:
                    self._changed.wait(self._pause_s())
                if self._is_closed:
                    return
                now_s = self._clock.now_s()
                late = [key for key, (at_s, _) in self._pending.items() if now_s >= at_s]
                callbacks = [self._pending.pop(key)[1] for key in late]
            for callback in callbacks:
                try:
                    callback()
                except Exception:  # one bug must not hide what hangs elsewhere
                    _log.exception("a callback failed")

    def _pause_s(self) -> float | None:
        if not self._pending:
            return None
        first_s = min(at_s for at_s, _ in self._pending.values())
        return min(MAX_PAUSE_S, max(0.0, first_s - self._clock.now_s()))
