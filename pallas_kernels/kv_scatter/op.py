"""The public op: picks an implementation, and nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, Int32

from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import choose
from pallas_kernels.kv_scatter import reference, xla
from pallas_kernels.pages import KVPages

_IMPLEMENTATIONS: Mapping[Backend, Callable[..., Any]] = {
    Backend.REFERENCE: reference.kv_scatter,
    Backend.XLA: xla.kv_scatter,
}


def kv_scatter(
    pages: KVPages,
    packed: Float[Array, "n L 2 K S H"],
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
    backend: Backend | None = None,
) -> KVPages:
    """Unpacks an array of packed blocks into the pages. See `reference.py`.

    Args are those of the reference, and:
      backend: The implementation to run; None: the platform's own.

    Raises:
      ValueError: `backend` names the Pallas kernel, which refuses these shapes.
    """
    chosen = choose("kv_scatter", backend, "no kernel yet")
    return _IMPLEMENTATIONS[chosen](pages, packed, blocks, replication=replication, layers=layers)
