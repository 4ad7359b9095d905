"""The public op: picks an implementation, and nothing else."""

from jaxtyping import Array, Int32

from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import choose, implementations
from pallas_kernels.kv_scatter import mosaic_gpu, pallas_gpu, pallas_tpu, reference, xla
from pallas_kernels.pages import KVPages, Packed, check_packing

_IMPLEMENTATIONS = implementations(
    reference=reference.kv_scatter,
    xla=xla.kv_scatter,
    tpu=pallas_tpu.kv_scatter,
    triton=pallas_gpu.kv_scatter,
    mosaic_gpu=mosaic_gpu.kv_scatter,
)


def kv_scatter(
    pages: KVPages,
    packed: Packed,
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
      ValueError: `replication` or `layers` do not fit the pages, or `backend` names a
        kernel that refuses these shapes.
    """
    check_packing(pages, replication, layers)
    refusals = {
        Backend.MOSAIC_TPU: pallas_tpu.refusal(pages),
        Backend.TRITON: pallas_gpu.refusal(pages),
        Backend.MOSAIC_GPU: mosaic_gpu.refusal(pages),
    }
    chosen = choose("kv_scatter", backend, refusals)
    return _IMPLEMENTATIONS[chosen](pages, packed, blocks, replication=replication, layers=layers)
