"""How an op's `op.py` picks an implementation: what was asked for, or a choice that is said."""

import functools
import logging

from pallas_kernels.backend import Backend, default_backend

_LOGGER = logging.getLogger(__name__)
_KERNELS = frozenset({Backend.PALLAS, Backend.INTERPRET})


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
