"""What a device can do at best, measured in the same minutes as what is compared with it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from memserve_jax.core.clock import Clock

READ_BYTES = {"cpu": 512 << 20}  # far beyond any cache
READ_BYTES_ELSEWHERE = 4 << 30
COPY_BYTES = {"cpu": 256 << 20}
COPY_BYTES_ELSEWHERE = 2 << 30
MATMUL_SIZE = {"cpu": 2048}
MATMUL_SIZE_ELSEWHERE = 8192


class ReadProbe:
    """How fast the device reads its memory: the sum of one large float32 array."""

    def __init__(self, clock: Clock, *, num_bytes: int | None = None):
        """Makes the array on the first device: `num_bytes`, or as much as suits the platform."""
        platform = jax.devices()[0].platform
        num_bytes = num_bytes or READ_BYTES.get(platform, READ_BYTES_ELSEWHERE)
        self._array = jnp.zeros(num_bytes // 4, jnp.float32)
        self._sum = jax.jit(jnp.sum)
        self._clock = clock
        self._sum(self._array).block_until_ready()

    def bytes_per_s(self) -> float:
        """Returns the rate of one pass now."""
        return self._array.nbytes / seconds_of(lambda: self._sum(self._array), self._clock)


class CopyProbe:
    """How fast the device copies in its memory: one large array onto another."""

    def __init__(self, clock: Clock, *, num_bytes: int | None = None):
        """Makes both arrays on the first device: `num_bytes` each, or as suits the platform."""
        platform = jax.devices()[0].platform
        num_bytes = num_bytes or COPY_BYTES.get(platform, COPY_BYTES_ELSEWHERE)
        self._source = jnp.ones(num_bytes // 4, jnp.float32)
        self._target = jnp.zeros(num_bytes // 4, jnp.float32)
        self._write = jax.jit(
            lambda target, source: jax.lax.dynamic_update_slice(target, source, (0,)),
            donate_argnums=0,
        )
        self._clock = clock
        self._copy().block_until_ready()

    def bytes_per_s(self) -> float:
        """Returns the rate of one copy now: bytes read and bytes written, together."""
        return 2 * self._source.nbytes / seconds_of(self._copy, self._clock)

    def _copy(self) -> Array:
        self._target = self._write(self._target, self._source)
        return self._target


class MatmulProbe:
    """How fast the device multiplies: one square matrix product."""

    def __init__(self, clock: Clock, dtype: str, *, size: int | None = None):
        """Makes matrices of `dtype` on the first device, `size` wide or as suits the platform."""
        platform = jax.devices()[0].platform
        size = size or MATMUL_SIZE.get(platform, MATMUL_SIZE_ELSEWHERE)
        self._matrix = jnp.ones((size, size), jnp.dtype(dtype))
        self._multiply = jax.jit(lambda matrix: matrix @ matrix)
        self._clock = clock
        self._multiply(self._matrix).block_until_ready()

    def flops_per_s(self) -> float:
        """Returns the rate of one product now."""
        seconds = seconds_of(lambda: self._multiply(self._matrix), self._clock)
        return 2 * self._matrix.shape[0] ** 3 / seconds


def seconds_of(work: Callable[[], Array], clock: Clock) -> float:
    """Returns the seconds from dispatching `work` until its result is there."""
    start_s = clock.now_s()
    jax.block_until_ready(work())
    return clock.now_s() - start_s
