"""The public op: picks an implementation, and nothing else."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxtyping import Array, Float, Int32

from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import INTERPRETER, choose
from pallas_kernels.kv_gather import pallas_tpu, reference, xla
from pallas_kernels.pages import KVPages, check_packing

_IMPLEMENTATIONS: Mapping[Backend, Callable[..., Any]] = {
    Backend.REFERENCE: reference.kv_gather,
    Backend.XLA: xla.kv_gather,
    Backend.PALLAS: pallas_tpu.kv_gather,
    Backend.INTERPRET: partial(pallas_tpu.kv_gather, interpret=INTERPRETER),
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
      ValueError: `replication` or `layers` do not fit the pages, or `backend` names the Pallas
        kernel, which refuses these shapes.
    """
    check_packing(pages, replication, layers)
    chosen = choose("kv_gather", backend, pallas_tpu.refusal(pages))
    return _IMPLEMENTATIONS[chosen](pages, blocks, replication=replication, layers=layers)
