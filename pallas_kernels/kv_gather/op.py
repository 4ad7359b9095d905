"""The public op: picks an implementation, and nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, Int32

from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import choose
from pallas_kernels.kv_gather import reference, xla
from pallas_kernels.pages import KVPages

_IMPLEMENTATIONS: Mapping[Backend, Callable[..., Any]] = {
    Backend.REFERENCE: reference.kv_gather,
    Backend.XLA: xla.kv_gather,
}


def kv_gather(
    pages: KVPages,
    blocks: Int32[Array, " n"],
    *,
    replication: int = 1,
    layers: tuple[int, int] | None = None,
    backend: Backend | None = None,
) -> Float[Array, "n L 2 K S H"]:
    """Packs blocks into one array. See `reference.py`.

    Args are those of the reference, and:
      backend: The implementation to run; None: the platform's own.

    Raises:
      ValueError: `backend` names the Pallas kernel, which refuses these shapes.
    """
    chosen = choose("kv_gather", backend, "no kernel yet")
    return _IMPLEMENTATIONS[chosen](pages, blocks, replication=replication, layers=layers)
