"""Attention over pages on a mesh: each device appends and attends with its own heads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from memserve_jax.model.batch import DecodeBatch, PrefillBatch
from memserve_jax.parallel.mesh import MODEL_AXIS
from memserve_jax.parallel.sharding import PAGES
from pallas_kernels.backend import Backend
from pallas_kernels.kv_append.op import kv_append
from pallas_kernels.paged_attention.op import paged_attention
from pallas_kernels.ragged_paged_attention.op import ragged_paged_attention

HEADS = PartitionSpec(None, MODEL_AXIS)  # T N H, T K H


@runtime_checkable
class Attend(Protocol):
    """Writes new tokens' KV into one layer's pages and attends to them and what is there."""

    def __call__(
        self,
        q: Float[Array, "T N H"],
        kv: tuple[Float[Array, "T K H"], Float[Array, "T K H"]],
        pages: tuple[Float[Array, "M K S H"], Float[Array, "M K S H"]],
        *,
        window: int | None,
    ) -> tuple[Float[Array, "T N H"], tuple[Float[Array, "M K S H"], Float[Array, "M K S H"]]]:
        """Returns the attention output and the layer's K and V pages."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedKernels:
    """How attention runs: over which mesh, by which kernels, with which scale on scores."""

    mesh: Mesh
    scale: float
    backend: Backend | None = None  # None: by platform

    def decode(self, batch: DecodeBatch) -> Attend:
        """Returns the attention of one token per row."""

        def attend(q: Array, k_pages: Array, v_pages: Array, window: int | None, *told: Array):
            return paged_attention(
                q, k_pages, v_pages, *told, scale=self.scale, window=window, backend=self.backend
            )

        return self._sharded(attend, batch.slots, (batch.block_tables, batch.context_lens))

    def prefill(self, batch: PrefillBatch) -> Attend:
        """Returns the attention of consecutive tokens of several rows, flattened."""

        def attend(q: Array, k_pages: Array, v_pages: Array, window: int | None, *told: Array):
            return ragged_paged_attention(
                q, k_pages, v_pages, *told, scale=self.scale, window=window, backend=self.backend
            )

        told = (batch.block_tables, batch.query_starts, batch.context_lens)
        return self._sharded(attend, batch.slots, told)

    def _sharded(
        self, attend: Callable[..., Array], slots: Array, told: tuple[Array, ...]
    ) -> Attend:
        def sharded(q, kv, pages, *, window):
            def on_local_heads(q, k, v, k_pages, v_pages, slots, *told):
                with jax.named_scope("kv_append"):
                    k_pages, v_pages = kv_append(
                        k_pages, v_pages, k, v, slots, backend=self.backend
                    )
                with jax.named_scope("attention"):
                    out = attend(q, k_pages, v_pages, window, *told)
                return out, k_pages, v_pages

            whole = PartitionSpec()
            out, k_pages, v_pages = jax.shard_map(
                on_local_heads,
                mesh=self.mesh,
                in_specs=(HEADS, HEADS, HEADS, PAGES, PAGES, whole, *[whole] * len(told)),
                out_specs=(HEADS, PAGES, PAGES),
                check_vma=False,  # kernels do not say over which axes their results vary
            )(q, *kv, *pages, slots, *told)
            return out, (k_pages, v_pages)

        return sharded
