"""Softmax-weighted sums over a context that is seen piece by piece.

Milakov & Gimelshein 2018 (arXiv:1805.02867): a running maximum and a running sum, rescaled
whenever the maximum rises. All in float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30  # not -inf: (-inf) - (-inf) is nan, and a row may see nothing


class Running(NamedTuple):
    """What has been summed so far, for queries of any leading shape."""

    maximum: Array  # f32[..., 1]  of the logits seen
    total: Array  # f32[..., 1]  sum of exp(logit - maximum)
    weighted: Array  # f32[..., H]  sum of exp(logit - maximum) * v


def start(q: Float[Array, "*rest H"]) -> Running:
    """Returns the state of queries that have seen nothing; varies over the mesh axes q does."""
    zeros = jnp.zeros_like(q, dtype=jnp.float32)
    return Running(jnp.full_like(zeros[..., :1], MASKED), zeros[..., :1], zeros)


def weigh(
    state: Running, logits: Float[Array, "*rest U"], visible: Bool[Array, "*any U"]
) -> tuple[Running, Float[Array, "*rest U"]]:
    """Returns the state rescaled to the new maximum, and the new tokens' weights.

    The caller adds the weights' product with v to `weighted`. Logits that are not visible may
    hold anything, nan too. `visible` has as many axes as `logits` and broadcasts to it. A query
    that has seen nothing yet counts what is masked; the first thing it sees, or `finish`,
    wipes that out (so v must be finite where nothing is visible).
    """
    logits = jnp.where(visible, logits, MASKED)
    maximum = jnp.maximum(state.maximum, logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - maximum)
    rescale = jnp.exp(state.maximum - maximum)
    total = state.total * rescale + weights.sum(axis=-1, keepdims=True)
    return Running(maximum, total, state.weighted * rescale), weights


def finish(state: Running) -> Float[Array, "*rest H"]:
    """Returns the weighted means; zeros for queries that have seen nothing."""
    is_empty = state.maximum <= MASKED
    return jnp.where(is_empty, 0.0, state.weighted / jnp.where(is_empty, 1.0, state.total))
