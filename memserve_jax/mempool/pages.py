"""The pages of an instance, and the compiled copies of whole blocks in and out of them.

Every copy is dispatched, never waited for. Pages go through each one as a donated argument, so
copies and steps run in the order of their calls: a gathered block is consistent even if the
block is given to someone else right after.
"""

import functools
from collections.abc import Callable, Collection, Sequence

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
    page_format,
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
        self._gather_side = _compile_gather_side(layout, mesh)
        self._scatter = _compile_scatter(layout, mesh, kernels)
        self._scatter_side = _compile_scatter_side(layout, mesh)
        self._compiled: set[tuple[str, int, int, int]] = set()  # of what n, L, C

    @property
    def num_compiled(self) -> int:
        """Shapes compiled so far."""
        return len(self._compiled)

    def gather(
        self,
        blocks: Sequence[BlockId],
        *,
        first_layer: int = 0,
        num_layers: int | None = None,
        side: int | None = None,
    ) -> Float[Array, "n L C K S H"]:
        """Returns the KV of one or more blocks, packed; n is `bucket(len(blocks))`.

        Only the pages of the layers asked for are read: the result waits for no other layer.

        Args:
          blocks: Whose KV.
          first_layer: Of the layers packed.
          num_layers: How many; None: all that follow.
          side: 0 for the K of a single layer, 1 for its V; None: both sides.
        """
        ids = np.zeros(bucket(len(blocks)), np.int32)  # padding reads page 0, for nobody
        ids[: len(blocks)] = blocks
        num_layers = self.layout.num_layers - first_layer if num_layers is None else num_layers
        if side is not None:
            assert num_layers == 1, "a single side is packed layer by layer"
            self._compiled.add(("gather", len(ids), 1, 1))
            return self._gather_side(self.pages[side][first_layer], ids)
        self._compiled.add(("gather", len(ids), num_layers, 2))
        return self._gather(self.pages.span(first_layer, num_layers), ids)

    def scatter(
        self,
        packed: Float[Array, "n L C K S H"],
        blocks: Sequence[BlockId],
        *,
        first_layer: int = 0,
        first_side: int = 0,
    ) -> None:
        """Puts the first `len(blocks)` packed blocks into these pages, in place.

        Args:
          packed: Of some consecutive layers, both sides; or of one side of one layer.
          blocks: Where to.
          first_layer: Of the layers packed.
          first_side: 0, or 1 where `packed` holds V alone.
        """
        _, num_layers, num_sides = packed.shape[:3]
        ids = np.full(packed.shape[0], self.num_blocks, np.int32)  # padding is dropped
        ids[: len(blocks)] = blocks
        self._compiled.add(("scatter", len(ids), num_layers, num_sides))
        if num_sides == 1:
            assert num_layers == 1, "a single side is unpacked layer by layer"
            sides = [self.pages.k[first_layer], self.pages.v[first_layer]]
            sides[first_side] = self._scatter_side(sides[first_side], packed, ids)
            part = KVPages((sides[0],), (sides[1],))
        else:
            part = self._scatter(self.pages.span(first_layer, num_layers), packed, ids)
        self.pages = self.pages.with_span(first_layer, part)

    def warm_up(
        self,
        max_blocks: int,
        progress: Callable[[int, int, str], None] | None = None,
        *,
        spans: Collection[int] | None = None,
        cells: bool = False,
    ) -> None:
        """Compiles copies of up to `max_blocks` blocks.

        Args:
          max_blocks: Of the largest copy.
          progress: Called as `progress(done, total, what)`.
          spans: How many layers copies are made of; None: all of them.
          cells: Whether one side of one layer of one block is copied too.
        """
        sizes = [1 << power for power in range(bucket(max_blocks).bit_length())]
        shapes = [(size, span) for span in spans or (self.layout.num_layers,) for size in sizes]
        for done, (size, span) in enumerate(shapes, start=1):
            packed = self.gather([BlockId(0)] * size, num_layers=span)
            self.scatter(packed, [])
            if progress is not None:
                layers = "" if span == self.layout.num_layers else f", {span} layers"
                progress(done, len(shapes), f"copies of {size} blocks{layers}")
        if cells:
            self.scatter(self.gather([BlockId(0)], num_layers=1, side=0), [])


# Cached: pools of one layout on one mesh, such as two lives of an instance, compile once.
@functools.cache
def _compile_zeros(layout: KVLayout, mesh: Mesh, num_blocks: int) -> Callable[[], Array]:
    shape = layout.page_shape(num_blocks, tensor_parallelism(mesh))
    dtype = jnp.dtype(layout.dtype)
    return jax.jit(
        lambda: jnp.zeros(shape, dtype), out_shardings=page_format(mesh, layout.head_dim)
    )


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
def _compile_gather_side(layout: KVLayout, mesh: Mesh) -> Callable[[Array, np.ndarray], Array]:
    copies = replication(layout.num_kv_heads, tensor_parallelism(mesh))

    def gather(
        page: Float[Array, "M _ S H"], blocks: Int32[Array, " n"]
    ) -> Float[Array, "n 1 1 K S H"]:
        return page.at[blocks].get(mode="clip")[:, None, None, ::copies]

    return jax.jit(gather, out_shardings=packed_sharding(mesh, layout.num_kv_heads))


@functools.cache
def _compile_scatter_side(
    layout: KVLayout, mesh: Mesh
) -> Callable[[Array, Array, np.ndarray], Array]:
    copies = replication(layout.num_kv_heads, tensor_parallelism(mesh))

    def scatter(
        page: Float[Array, "M _ S H"],
        packed: Float[Array, "n 1 1 K S H"],
        blocks: Int32[Array, " n"],
    ) -> Float[Array, "M _ S H"]:
        return page.at[blocks].set(jnp.repeat(packed[:, 0, 0], copies, axis=1), mode="drop")

    return jax.jit(scatter, donate_argnums=0, out_shardings=page_format(mesh, layout.head_dim))


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

    return jax.jit(scatter, donate_argnums=0, out_shardings=page_format(mesh, layout.head_dim))
