"""Rows of an array in a GPU's global memory, loaded and stored by Triton kernels.

Triton works on powers of two. Rows of any width are padded to the next one, in registers only:
what is masked is neither read nor written.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltr
from jaxtyping import Array

MOST_ELEMENTS = 2**31  # that Pallas-Triton's 32-bit offsets reach

Ref = Any  # of Pallas; it has no public type


def refusal(pages: Array) -> str | None:
    """Returns why kernels cannot address the rows of such pages; None if they can."""
    if pages.size > MOST_ELEMENTS:
        return f"{pages.size} elements of one layer's K; at most {MOST_ELEMENTS} are taken"
    return None


def load_rows(ref: Ref, where: tuple[Array, ...], is_real: Array) -> Array:
    """Returns rows of the last axis of `ref`, `[X, H']`; zeros where padded or not real.

    Args:
      ref: `[..., H]`; H' is H padded.
      where: An index of each axis but the last: i32[X], or i32[] for one of all rows.
      is_real: bool[X]. Rows that are not may have any index but a negative one.
    """
    place, is_there = _places(ref, where, is_real)
    return pltr.load(ref.at[place], mask=is_there, other=jnp.zeros((), ref.dtype))


def store_rows(ref: Ref, rows: Array, where: tuple[Array, ...], is_real: Array) -> None:
    """Stores what `load_rows` would load, in the dtype of `ref`.

    Rows that are not real must have an index beyond `ref`: Pallas's interpreter writes what it
    read to masked places that exist.
    """
    place, is_there = _places(ref, where, is_real)
    pltr.store(ref.at[place], rows.astype(ref.dtype), mask=is_there)


def _places(ref: Ref, where: tuple[Array, ...], is_real: Array) -> tuple[tuple[Array, ...], Array]:
    width = ref.shape[-1]
    padded = pl.next_power_of_2(width)
    shape = (is_real.shape[0], padded)

    def spread(index: Array) -> Array:
        return jnp.broadcast_to(index[:, None] if index.ndim else index, shape)

    column = jnp.broadcast_to(jnp.arange(padded, dtype=jnp.int32)[None, :], shape)
    is_there = spread(is_real)
    if padded != width:
        is_there &= column < width
    return (*map(spread, where), column), is_there
