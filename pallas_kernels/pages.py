"""The KV pages of a model on one mesh."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

Packed = Float[Array, "n L 2 K S H"] | Int8[Array, "n L 2 K S H"]
Pages = Float[Array, "M K S H"] | Int8[Array, "M K S H"]  # int8 ones come with scales f32[M, K, S]


class KVPages(NamedTuple):
    """Per layer one K and one V page array `[M, K, S, H]`; page i is block i's memory.

    K counts the heads stored, replicas included. Every step donates the pages it is given and
    returns them updated in place: who holds the result owns the pages.
    """

    k: tuple[Array, ...]  # L arrays
    v: tuple[Array, ...]  # L arrays

    @property
    def num_pages(self) -> int:
        """M."""
        return self.k[0].shape[0]

    @property
    def page_size(self) -> int:
        """S, tokens a page."""
        return self.k[0].shape[2]

    def span(self, first_layer: int, num_layers: int) -> "KVPages":
        """Returns the pages of some consecutive layers: the same arrays."""
        stop = first_layer + num_layers
        return KVPages(self.k[first_layer:stop], self.v[first_layer:stop])

    def with_span(self, first_layer: int, pages: "KVPages") -> "KVPages":
        """Returns these pages with those of the layers from `first_layer` on replaced."""
        stop = first_layer + len(pages.k)
        return KVPages(
            self.k[:first_layer] + pages.k + self.k[stop:],
            self.v[:first_layer] + pages.v + self.v[stop:],
        )


def check_scales(
    k_pages: Array, k_scales: Array | None, v_scales: Array | None
) -> dict[str, Array]:
    """Returns the keyword arguments that an op passes on: both scales, or none.

    Raises:
      ValueError: Int8 pages without scales, scales of other pages, or of another shape.
    """
    if k_pages.dtype != jnp.int8:
        if k_scales is not None or v_scales is not None:
            raise ValueError(f"k_scales, v_scales: for int8 pages; these are {k_pages.dtype}")
        return {}
    if k_scales is None or v_scales is None:
        raise ValueError("k_scales, v_scales: int8 pages need both")
    for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
        if scales.shape != k_pages.shape[:3]:
            raise ValueError(f"{name}: shape {scales.shape}, allowed: {k_pages.shape[:3]}")
    return {"k_scales": k_scales, "v_scales": v_scales}


def check_packing(pages: KVPages, replication: int, layers: tuple[int, int] | None) -> None:
    """Checks what `kv_gather` and `kv_scatter` are asked to do.

    Raises:
      ValueError: The stored heads do not divide by `replication`, or `layers` is no range of
        the layers there are.
    """
    num_layers, stored_heads = len(pages.k), pages.k[0].shape[1]
    if replication < 1 or stored_heads % replication != 0:
        raise ValueError(f"{stored_heads} stored heads do not divide by replication {replication}")
    if layers is not None and not 0 <= layers[0] < layers[1] <= num_layers:
        raise ValueError(f"layers {layers[0]}:{layers[1]} of {num_layers}")
