"""How an op's `op.py` picks an implementation: what was asked for, or a choice that is said."""

import functools
import logging

import jax
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.backend import Backend, default_backend

_LOGGER = logging.getLogger(__name__)
_KERNELS = frozenset({Backend.PALLAS, Backend.INTERPRET})

# Unwritten memory reads as nan, and unordered accesses to it are reported on stdout.
INTERPRETER = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


def choose(op: str, backend: Backend | None, refusal: str | None) -> Backend:
    """Returns the implementation of `op` to run.

    Args:
      op: Name of the op, for messages.
      backend: What the caller asked for; None leaves the choice to the platform.
      refusal: Why the op's Pallas kernel does not take these arguments; None if it does.

    Raises:
      ValueError: `backend` names the Pallas kernel, which refuses the arguments.
    """
    wanted = default_backend() if backend is None else backend
    if wanted not in _KERNELS or refusal is None:
        return wanted
    if backend is not None:
        raise ValueError(f"{op}: the Pallas TPU kernel refuses: {refusal}")
    _say_once(op, refusal)
    return Backend.XLA


@functools.cache
def _say_once(op: str, refusal: str) -> None:
    _LOGGER.warning("%s runs as XLA, not as a Pallas TPU kernel: %s", op, refusal)


def check_groups(q: jax.Array, k_pages: jax.Array) -> None:
    """Checks that every kv head serves the same number of query heads.

    Raises:
      ValueError: The kv heads do not divide the query heads.
    """
    if q.shape[1] % k_pages.shape[1] != 0:
        raise ValueError(f"{q.shape[1]} query heads do not divide by {k_pages.shape[1]} kv heads")
