"""The public op: picks an implementation, and nothing else."""

from jaxtyping import Array, Float, Int32

from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import choose, implementations
from pallas_kernels.kv_append import pallas_gpu, pallas_tpu, reference, xla
from pallas_kernels.pages import Pages, check_scales

_IMPLEMENTATIONS = implementations(
    reference=reference.kv_append,
    xla=xla.kv_append,
    tpu=pallas_tpu.kv_append,
    triton=pallas_gpu.kv_append,
)


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
      ValueError: The scales do not fit the pages, or `backend` names a
        kernel that refuses these shapes.
    """
    scales = check_scales(k_pages, k_scales, v_scales)
    refusals = {
        Backend.MOSAIC_TPU: pallas_tpu.refusal(k_pages),
        Backend.TRITON: pallas_gpu.refusal(k_pages),
    }
    chosen = choose("kv_append", backend, refusals)
    return _IMPLEMENTATIONS[chosen](k_pages, v_pages, k, v, slots, **scales)
