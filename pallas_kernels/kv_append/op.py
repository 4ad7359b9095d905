"""The public op: picks an implementation, and nothing else."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxtyping import Array, Float, Int32

from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import INTERPRETER, choose
from pallas_kernels.kv_append import pallas_tpu, reference, xla
from pallas_kernels.pages import Pages, check_scales

_IMPLEMENTATIONS: Mapping[Backend, Callable[..., Any]] = {
    Backend.REFERENCE: reference.kv_append,
    Backend.XLA: xla.kv_append,
    Backend.PALLAS: pallas_tpu.kv_append,
    Backend.INTERPRET: partial(pallas_tpu.kv_append, interpret=INTERPRETER),
}


def kv_append(
    k_pages: Pages,
    v_pages: Pages,
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    slots: Int32[Array, " T"],
    *,
    k_scales: Float[Array, "M K S"] | None = None,
    v_scales: Float[Array, "M K S"] | None = None,
    backend: Backend | None = None,
) -> tuple[Array, ...]:
    """Writes new tokens' K and V, and int8 pages' scales, into their slots. See `reference.py`.

    Args are those of the reference, and:
      backend: The implementation to run; None: the platform's own.

    Raises:
      ValueError: The scales do not fit the pages, or `backend` names the Pallas kernel, which
        refuses these shapes.
    """
    scales = check_scales(k_pages, k_scales, v_scales)
    chosen = choose("kv_append", backend, pallas_tpu.refusal(k_pages))
    return _IMPLEMENTATIONS[chosen](k_pages, v_pages, k, v, slots, **scales)
