"""How an op's `op.py` picks an implementation: what was asked for, or a choice that is said."""

import collections
import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.backend import Backend, default_backend
from pallas_kernels.device import device

_LOGGER = logging.getLogger(__name__)

# The dispatch table: the kernels of each op on each platform, tried in this order. XLA serves
# where none takes the arguments, and wherever there is no kernel at all.
_ON_TPU, _TRITON, _BOTH = (
    (Backend.MOSAIC_TPU,),
    (Backend.TRITON,),
    (Backend.TRITON, Backend.MOSAIC_GPU),
)
KERNELS: Mapping[str, Mapping[str, tuple[Backend, ...]]] = {
    "paged_attention": {"tpu": _ON_TPU, "gpu": _BOTH},
    "ragged_paged_attention": {"tpu": _ON_TPU, "gpu": _BOTH},
    "kv_append": {"tpu": _ON_TPU, "gpu": _TRITON},
    "kv_gather": {"tpu": _ON_TPU, "gpu": _BOTH},
    "kv_scatter": {"tpu": _ON_TPU, "gpu": _BOTH},
}
_INTERPRETED = {
    Backend.INTERPRET: Backend.MOSAIC_TPU,
    Backend.INTERPRET_TRITON: Backend.TRITON,
    Backend.INTERPRET_MOSAIC_GPU: Backend.MOSAIC_GPU,
}

# Unwritten memory reads as nan, and unordered accesses to it are reported on stdout.
INTERPRETER = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
# jax 0.10.2 does not export it.
_GPU_INTERPRETER = getattr(plgpu, "InterpretGPUParams", None)

_fallbacks: collections.Counter[tuple[str, str]] = collections.Counter()
_fallbacks_lock = threading.Lock()


def implementations(
    *,
    reference: Callable[..., Any],
    xla: Callable[..., Any],
    tpu: Callable[..., Any],
    triton: Callable[..., Any],
    mosaic_gpu: Callable[..., Any] | None = None,
) -> Mapping[Backend, Callable[..., Any]]:
    """Returns an op's implementations by name, those interpreted on CPU among them."""
    found = {
        Backend.REFERENCE: reference,
        Backend.XLA: xla,
        Backend.MOSAIC_TPU: tpu,
        Backend.TRITON: triton,
        Backend.INTERPRET: partial(tpu, interpret=INTERPRETER),
        Backend.INTERPRET_TRITON: partial(triton, interpret=True),
    }
    if mosaic_gpu is not None:
        found[Backend.MOSAIC_GPU] = mosaic_gpu
        if _GPU_INTERPRETER is not None:
            interpreter = _GPU_INTERPRETER(detect_races=True)
            found[Backend.INTERPRET_MOSAIC_GPU] = partial(mosaic_gpu, interpret=interpreter)
    return found


def choose(op: str, backend: Backend | None, refusals: Mapping[Backend, str | None]) -> Backend:
    """Returns the implementation of `op` to run; never `Backend.PALLAS`.

    Args:
      op: Name of the op.
      backend: What the caller asked for; None leaves the choice to the platform.
      refusals: For each kernel the op has, why it does not take these arguments; None if it
        does.

    Raises:
      ValueError: `backend` names a kernel that refuses the arguments, or that the op has not.
    """
    wanted = default_backend() if backend is None else backend
    if wanted in (Backend.REFERENCE, Backend.XLA):
        return wanted
    if wanted is not Backend.PALLAS:
        kernel = _INTERPRETED.get(wanted, wanted)
        refusal = refusals.get(kernel, "there is none")
        if refusal is not None:
            raise ValueError(f"{op}: the {kernel} kernel refuses: {refusal}")
        return wanted
    # A process on CPU that asks for kernels lowers for another platform: a TPU, if nothing says.
    platform = device().platform
    kernels = KERNELS[op]["gpu" if platform == "gpu" else "tpu"]
    for kernel in kernels:
        if refusals[kernel] is None:
            return kernel
    reasons = "; ".join(f"{kernel}: {refusals[kernel]}" for kernel in kernels)
    if backend is not None:
        raise ValueError(f"{op}: the Pallas kernel refuses: {reasons}")
    _note_fallback(op, reasons)
    return Backend.XLA


def _note_fallback(op: str, reasons: str) -> None:
    with _fallbacks_lock:
        _fallbacks[op, reasons] += 1
        is_first = _fallbacks[op, reasons] == 1
    if is_first:
        _LOGGER.warning("%s runs as XLA, not as a Pallas kernel: %s", op, reasons)


def fallbacks() -> dict[str, dict[str, int]]:
    """Returns how often an op was traced as XLA where its platform has kernels.

    By op and by the kernels' reasons. An op is traced once for each place in a program and each
    compiled shape, so 0 is what one hopes for, and the number says little else.
    """
    with _fallbacks_lock:
        counted = dict(_fallbacks)
    found: dict[str, dict[str, int]] = {}
    for (op, reasons), count in counted.items():
        found.setdefault(op, {})[reasons] = count
    return found


def check_groups(q: jax.Array, k_pages: jax.Array) -> None:
    """Checks that every kv head serves the same number of query heads.

    Raises:
      ValueError: The kv heads do not divide the query heads.
    """
    if q.shape[1] % k_pages.shape[1] != 0:
        raise ValueError(f"{q.shape[1]} query heads do not divide by {k_pages.shape[1]} kv heads")
