"""Log lines about what others do: as many as a person can read, whatever they do."""

import logging

from memserve_jax.core.clock import Clock
from scheduler.allowance import Allowance


class BoundedLog:
    """Some lines at once, then so many a second; the next one says how many were left out."""

    def __init__(self, log: logging.Logger, clock: Clock, *, burst: int, per_s: float = 1.0):
        """Has said nothing.

        Args:
          log: Where lines go.
          clock: Of the allowance.
          burst: Lines at once.
          per_s: More lines each second.
        """
        self._log = log
        self._clock = clock
        self._allowance = Allowance(burst=burst, per_s=per_s, now_s=clock.now_s())
        self._num_unsaid = 0

    def say(self, level: int, text: str) -> None:
        """Logs a line, unless there have been too many."""
        if not self._allowance.take(self._clock.now_s()):
            self._num_unsaid += 1
            return
        more = f" (and {self._num_unsaid} more before)" if self._num_unsaid else ""
        self._num_unsaid = 0
        self._log.log(level, "%s%s", text, more)
