"""The public op: picks an implementation, and nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, Int32

from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import choose
from pallas_kernels.paged_attention import reference, xla

_IMPLEMENTATIONS: Mapping[Backend, Callable[..., Any]] = {
    Backend.REFERENCE: reference.paged_attention,
    Backend.XLA: xla.paged_attention,
}


def paged_attention(
    q: Float[Array, "B N H"],
    k_pages: Float[Array, "M K S H"],
    v_pages: Float[Array, "M K S H"],
    block_tables: Int32[Array, "B P"],
    context_lens: Int32[Array, " B"],
    *,
    scale: float,
    window: int | None = None,
    backend: Backend | None = None,
) -> Float[Array, "B N H"]:
    """Attends one query token per row to its paged context. See `reference.py`.

    Args are those of the reference, and:
      backend: The implementation to run; None: the platform's own.

    Raises:
      ValueError: `backend` names the Pallas kernel, which refuses these shapes.
    """
    chosen = choose("paged_attention", backend, "no kernel yet")
    return _IMPLEMENTATIONS[chosen](
        q, k_pages, v_pages, block_tables, context_lens, scale=scale, window=window
    )
