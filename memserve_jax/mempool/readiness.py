"""Waiting for arrays that may never be ready, without a thread for each.

JAX has no callback for a finished array, and a thread that blocks on an array that never
arrives can be neither ended nor left behind: the interpreter aborts at exit. So one thread asks.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from memserve_jax.core.clock import Clock

MIN_PAUSE_S = 50e-6
MAX_PAUSE_S = 5e-3
PAUSE_FRACTION = 1 / 16  # of the youngest wait: what asking seldom may add to it

_log = logging.getLogger(__name__)

OnReady = Callable[[Exception | None], None]


@dataclass(slots=True, kw_only=True, eq=False)
class _Wait:
    arrays: Sequence[Any]
    since_s: float
    deadline_s: float
    on_ready: OnReady
    on_late: Callable[[], None]
    is_late: bool = False


class ReadinessWatch:
    """Says when arrays are ready. Any thread may make every call; callbacks run on its own.

    Callbacks must not wait for anything that is not bound to end.
    """

    def __init__(self, name: str, clock: Clock):
        self._clock = clock
        self._changed = threading.Condition()
        self._fresh: list[_Wait] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def watch(
        self,
        arrays: Sequence[Any],
        *,
        timeout_s: float,
        on_ready: OnReady,
        on_late: Callable[[], None],
    ) -> None:
        """Waits for all of `arrays`; none are ready at once. Does nothing once closed.

        Args:
          arrays: Of jax; kept until they are ready, however late.
          timeout_s: From now.
          on_ready: Called once with None, or with the error that the arrays ended with; after
            `on_late` too, so that what they hold can be counted.
          on_late: Called once if the time-out comes first.
        """
        now_s = self._clock.now_s()
        wait = _Wait(
            arrays=arrays,
            since_s=now_s,
            deadline_s=now_s + timeout_s,
            on_ready=on_ready,
            on_late=on_late,
        )
        with self._changed:
            if not self._is_closed:
                self._fresh.append(wait)
                self._changed.notify()

    def close(self) -> None:
        """Ends the thread, after the callback under way; arrays not ready are let go."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        waits: list[_Wait] = []
        while True:
            with self._changed:
                if not self._fresh and not self._is_closed:
                    self._changed.wait(self._pause_s(waits))
                if self._is_closed:
                    return
                waits += self._fresh
                self._fresh = []
            waits = [wait for wait in waits if not self._has_ended(wait)]

    def _pause_s(self, waits: Sequence[_Wait]) -> float | None:
        if not waits:
            return None
        youngest_s = self._clock.now_s() - max(wait.since_s for wait in waits)
        return min(MAX_PAUSE_S, max(MIN_PAUSE_S, youngest_s * PAUSE_FRACTION))

    def _has_ended(self, wait: _Wait) -> bool:
        if all(array.is_ready() for array in wait.arrays):
            error = _error_of(wait.arrays)
            _call(lambda: wait.on_ready(error))
            return True
        if not wait.is_late and self._clock.now_s() >= wait.deadline_s:
            wait.is_late = True
            _call(wait.on_late)
        return False


def _error_of(arrays: Sequence[Any]) -> Exception | None:
    try:
        jax.block_until_ready(arrays)  # ready: this only raises what went wrong
    except Exception as error:  # whatever the runtime makes of a broken connection
        return error
    return None


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:  # one transfer's bug must not end the thread that all others wait on
        _log.exception("a callback failed")
