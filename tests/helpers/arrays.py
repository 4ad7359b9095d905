"""Arrays whose readiness a test decides."""


class FakeArray:
    """What a `ReadinessWatch` and `jax.block_until_ready` see of an array."""

    def __init__(self):
        self._is_ready, self._error = False, None

    def is_ready(self) -> bool:
        return self._is_ready

    def block_until_ready(self):
        if self._error is not None:
            raise self._error
        return self

    def arrive(self) -> None:
        self._is_ready = True

    def fail(self, error: Exception) -> None:
        self._error, self._is_ready = error, True
