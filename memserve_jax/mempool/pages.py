"""The pages of an instance, and the compiled copies of whole blocks in and out of them.

Every copy is dispatched, never waited for. Pages go through each one as a donated argument, so
copies and steps run in the order of their calls: a gathered block is consistent even if the
block is given to someone else right after.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import BlockId
from memserve_jax.parallel.mesh import tensor_parallelism
from memserve_jax.parallel.sharding import (
    PACKED,
    PAGES,
    packed_sharding,
    page_sharding,
    replicated,
    replication,
)
from pallas_kernels.backend import Backend
from pallas_kernels.kv_gather.op import kv_gather
from pallas_kernels.kv_scatter.op import kv_scatter
from pallas_kernels.pages import KVPages


def make_pages(layout: KVLayout, mesh: Mesh, num_blocks: int) -> KVPages:
    """Returns zeroed pages for `num_blocks` blocks, made on the mesh, split over heads."""
    make = _compile_zeros(layout, mesh, num_blocks)
    return KVPages(
        tuple(make() for _ in range(layout.num_layers)),
        tuple(make() for _ in range(layout.num_layers)),
    )


def bucket(num_blocks: int) -> int:
    """Returns the least power of two that is at least `num_blocks`: what copies are padded to."""
    return 1 << (num_blocks - 1).bit_length()


class PageStore:
    """Owns the pages between steps; packs blocks out of them and back.

    Attributes:
      pages: Who donates them binds the result here before the next call.
      packed_sharding: Of packed blocks on this mesh.
    """

    def __init__(self, layout: KVLayout, mesh: Mesh, num_blocks: int, kernels: Backend | None):
        self.layout = layout
        self.num_blocks = num_blocks
        self.pages = make_pages(layout, mesh, num_blocks)
        self.packed_sharding = packed_sharding(mesh, layout.num_kv_heads)
        self._gather = _compile_gather(layout, mesh, kernels)
        self._scatter = _compile_scatter(layout, mesh, kernels)
        self._compiled: set[tuple[str, int]] = set()

    @property
    def num_compiled(self) -> int:
        """Shapes compiled so far."""
        return len(self._compiled)

    def gather(self, blocks: Sequence[BlockId]) -> Float[Array, "n L 2 K S H"]:
        """Returns the KV of one or more blocks, packed; n is `bucket(len(blocks))`."""
        ids = np.zeros(bucket(len(blocks)), np.int32)  # padding reads page 0, for nobody
        ids[: len(blocks)] = blocks
        self._compiled.add(("gather", len(ids)))
        return self._gather(self.pages, ids)

    def scatter(self, packed: Float[Array, "n L 2 K S H"], blocks: Sequence[BlockId]) -> None:
        """Puts the first `len(blocks)` packed blocks into these pages, in place."""
        ids = np.full(packed.shape[0], self.num_blocks, np.int32)  # padding is dropped
        ids[: len(blocks)] = blocks
        self._compiled.add(("scatter", len(ids)))
        self.pages = self._scatter(self.pages, packed, ids)

    def warm_up(
        self, max_blocks: int, progress: Callable[[int, int, str], None] | None = None
    ) -> None:
        """Compiles copies of up to `max_blocks` blocks. `progress(done, total, what)`."""
        sizes = [1 << power for power in range(bucket(max_blocks).bit_length())]
        for done, size in enumerate(sizes, start=1):
            packed = self.gather([BlockId(0)] * size)
            self.scatter(packed, [])
            if progress is not None:
                progress(done, len(sizes), f"copies of {size} blocks")


# Cached: pools of one layout on one mesh, such as two lives of an instance, compile once.
@functools.cache
def _compile_zeros(layout: KVLayout, mesh: Mesh, num_blocks: int) -> Callable[[], Array]:
    shape = layout.page_shape(num_blocks, tensor_parallelism(mesh))
    dtype = jnp.dtype(layout.dtype)
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=page_sharding(mesh))


@functools.cache
def _compile_gather(
    layout: KVLayout, mesh: Mesh, kernels: Backend | None
) -> Callable[[KVPages, np.ndarray], Array]:
    copies = replication(layout.num_kv_heads, tensor_parallelism(mesh))
    local = jax.shard_map(
        functools.partial(kv_gather, backend=kernels),
        mesh=mesh,
        in_specs=(PAGES, replicated(mesh).spec),
        out_specs=PACKED,
        check_vma=False,  # kernels do not say over which axes their results vary
    )

    def gather(pages: KVPages, blocks: Int32[Array, " n"]) -> Float[Array, "n L 2 K S H"]:
        return local(pages, blocks)[:, :, :, ::copies]

    return jax.jit(gather, out_shardings=packed_sharding(mesh, layout.num_kv_heads))


@functools.cache
def _compile_scatter(
    layout: KVLayout, mesh: Mesh, kernels: Backend | None
) -> Callable[[KVPages, Array, np.ndarray], KVPages]:
    copies = replication(layout.num_kv_heads, tensor_parallelism(mesh))
    local = jax.shard_map(
        functools.partial(kv_scatter, backend=kernels),
        mesh=mesh,
        in_specs=(PAGES, PACKED, replicated(mesh).spec),
        out_specs=PAGES,
        check_vma=False,  # as above
    )

    def scatter(
        pages: KVPages, packed: Float[Array, "n L 2 K S H"], blocks: Int32[Array, " n"]
    ) -> KVPages:
        return local(pages, jnp.repeat(packed, copies, axis=3), blocks)

    return jax.jit(scatter, donate_argnums=0, out_shardings=page_sharding(mesh))
