"""How often something may happen: some at once, then so many a second."""


class Allowance:
    """A token bucket. The caller brings the time."""

    def __init__(self, *, burst: int, per_s: float, now_s: float):
        """Starts full.

        Args:
          burst: How many may happen at once.
          per_s: How many more may happen each second.
          now_s: On the clock of `take`.
        """
        self._burst = burst
        self._per_s = per_s
        self._left = float(burst)
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Whether it may happen now; counts it if so."""
        gained = max(0.0, now_s - self._at_s) * self._per_s
        self._left, self._at_s = min(self._burst, self._left + gained), now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
