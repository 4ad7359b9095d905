"""The public op: picks an implementation, and nothing else."""

from jaxtyping import Array, Float, Int32

from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import check_groups, choose, implementations
from pallas_kernels.pages import Pages, check_scales
from pallas_kernels.ragged_paged_attention import mosaic_gpu, pallas_gpu, pallas_tpu, reference, xla

_IMPLEMENTATIONS = implementations(
    reference=reference.ragged_paged_attention,
    xla=xla.ragged_paged_attention,
    tpu=pallas_tpu.ragged_paged_attention,
    triton=pallas_gpu.ragged_paged_attention,
    mosaic_gpu=mosaic_gpu.ragged_paged_attention,
)


def ragged_paged_attention(
    q: Float[Array, "T N H"],
    k_pages: Pages,
    v_pages: Pages,
    block_tables: Int32[Array, "R P"],
    query_starts: Int32[Array, " R1"],
    context_lens: Int32[Array, " R"],
    *,
    scale: float,
    window: int | None = None,
    k_scales: Float[Array, "M K S"] | None = None,
    v_scales: Float[Array, "M K S"] | None = None,
    backend: Backend | None = None,
) -> Float[Array, "T N H"]:
    """Attends new tokens of several rows to their contexts. See `reference.py`.

    Args are those of the reference, and:
      backend: The implementation to run; None: the platform's own.

    Raises:
      ValueError: The heads do not group, the scales do not fit the pages, or `backend` names
        the Pallas kernel, which refuses these shapes.
    """
    check_groups(q, k_pages)
    scales = check_scales(k_pages, k_scales, v_scales)
    refusals = {
        Backend.MOSAIC_TPU: pallas_tpu.refusal(q, k_pages),
        Backend.TRITON: pallas_gpu.refusal(q, k_pages, **scales),
        Backend.MOSAIC_GPU: mosaic_gpu.refusal(q, k_pages, window, **scales),
    }
    chosen = choose("ragged_paged_attention", backend, refusals)
    return _IMPLEMENTATIONS[chosen](
        q,
        k_pages,
        v_pages,
        block_tables,
        query_starts,
        context_lens,
        scale=scale,
        window=window,
        **scales,
    )
