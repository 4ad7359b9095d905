"""The public op: picks an implementation, and nothing else."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxtyping import Array, Float, Int32

from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import INTERPRETER, choose
from pallas_kernels.kv_scatter import pallas_tpu, reference, xla
from pallas_kernels.pages import KVPages, check_packing

_IMPLEMENTATIONS: Mapping[Backend, Callable[..., Any]] = {
    Backend.REFERENCE: reference.kv_scatter,
    Backend.XLA: xla.kv_scatter,
    Backend.PALLAS: pallas_tpu.kv_scatter,
    Backend.INTERPRET: partial(pallas_tpu.kv_scatter, interpret=INTERPRETER),
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
      ValueError: `replication` or `layers` do not fit the pages, or `backend` names the Pallas
        kernel, which refuses these shapes.
    """
    check_packing(pages, replication, layers)
    chosen = choose("kv_scatter", backend, pallas_tpu.refusal(pages))
    return _IMPLEMENTATIONS[chosen](pages, packed, blocks, replication=replication, layers=layers)
