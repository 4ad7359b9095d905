"""Logits to tokens, on the device: one function for every mix of rows.

Each row has its own parameters. What no row asks for is skipped by `lax.cond`, so an all-greedy
batch costs an argmax. The order is vLLM's: logprobs of the raw logits, penalties, temperature,
min-p, top-k, top-p. A row's noise depends on its seed and the token's position alone, so a
seeded request gives the same tokens in any company, after preemption and after a hand-off.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt32

MAX_ALTERNATIVES = 20  # logprobs a request may ask for at each position
_GREEDY_BELOW = 1e-5  # temperatures under it divide by nothing useful


class SamplingRows(NamedTuple):
    """What each row of a step asks for. Padding rows: `rows` = R, `samples` False."""

    rows: Int32[Array, " B"]  # lines of SamplingState
    samples: Bool[Array, " B"]  # whether the row's token is wanted
    positions: Int32[Array, " B"]  # of the token to sample, in its sequence
    seeds: UInt32[Array, "B 2"]  # high and low words
    temperature: Float[Array, " B"]  # 0: greedy
    top_k: Int32[Array, " B"]  # 0: all
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]
    repetition: Float[Array, " B"]
    presence: Float[Array, " B"]
    frequency: Float[Array, " B"]
    wants_logprobs: Bool[Array, " B"]


class SamplingState(NamedTuple):
    """What stays on the device between steps, a line per row of the engine. Donated by a step."""

    last_tokens: Int32[Array, " R"]  # input of the row's next step
    output_counts: Int32[Array, "R V"]  # of each token in the answer; for penalties
    in_prompt: Bool[Array, "R V"]


class Sampled(NamedTuple):
    """One token per row, and logprobs where any row wanted them (else zeros)."""

    token_ids: Int32[Array, " B"]
    logprobs: Float[Array, " B"]
    top_token_ids: Int32[Array, "B A"]
    top_logprobs: Float[Array, "B A"]


def empty_state(num_rows: int, vocab_size: int) -> SamplingState:
    """Returns the state before any request."""
    return SamplingState(
        last_tokens=jnp.zeros(num_rows, jnp.int32),
        output_counts=jnp.zeros((num_rows, vocab_size), jnp.int32),
        in_prompt=jnp.zeros((num_rows, vocab_size), jnp.bool_),
    )


def sample(
    logits: Float[Array, "B V"], state: SamplingState, rows: SamplingRows
) -> tuple[Sampled, SamplingState]:
    """Draws one token per row and counts it. `state` comes back updated in place."""
    logits = logits.astype(jnp.float32)
    penalised = lax.cond(
        jnp.any(_has_penalties(rows)), _penalise, lambda x, *_: x, logits, state, rows
    )
    greedy = jnp.argmax(penalised, axis=-1).astype(jnp.int32)
    is_random = rows.samples & (rows.temperature >= _GREEDY_BELOW)
    token_ids = lax.cond(
        jnp.any(is_random),
        lambda x: jnp.where(is_random, _draw(x, rows), greedy),
        lambda _: greedy,
        penalised,
    )
    sampled = lax.cond(jnp.any(rows.wants_logprobs), _with_logprobs, _alone, logits, token_ids)
    num_rows = state.last_tokens.shape[0]
    lines = jnp.where(rows.samples, rows.rows, num_rows)  # past the end: dropped
    return sampled, SamplingState(
        last_tokens=state.last_tokens.at[lines].set(token_ids, mode="drop"),
        output_counts=state.output_counts.at[lines, token_ids].add(1, mode="drop"),
        in_prompt=state.in_prompt,
    )


def set_history(
    state: SamplingState,
    row: Int32[Array, ""],
    output_counts: Int32[Array, " V"],
    in_prompt: Bool[Array, " V"],
) -> SamplingState:
    """Returns the state with `row` given to a request with penalties and this history."""
    return SamplingState(
        last_tokens=state.last_tokens,
        output_counts=state.output_counts.at[row].set(output_counts),
        in_prompt=state.in_prompt.at[row].set(in_prompt),
    )


def _has_penalties(rows: SamplingRows) -> Bool[Array, " B"]:
    asks = (rows.repetition != 1.0) | (rows.presence != 0.0) | (rows.frequency != 0.0)
    return rows.samples & asks


def _penalise(
    logits: Float[Array, "B V"], state: SamplingState, rows: SamplingRows
) -> Float[Array, "B V"]:
    """Repetition over prompt and answer (CTRL, arXiv 1909.05858); the others over the answer."""
    counts = state.output_counts.at[rows.rows].get(mode="clip")  # B V
    occurs = counts > 0
    seen = occurs | state.in_prompt.at[rows.rows].get(mode="clip")
    factor = rows.repetition[:, None]
    repelled = jnp.where(logits > 0, logits / factor, logits * factor)
    penalised = jnp.where(seen, repelled, logits)
    penalised -= rows.frequency[:, None] * counts.astype(jnp.float32)
    penalised -= rows.presence[:, None] * occurs.astype(jnp.float32)
    return jnp.where(_has_penalties(rows)[:, None], penalised, logits)


def _draw(logits: Float[Array, "B V"], rows: SamplingRows) -> Int32[Array, " B"]:
    """A draw from each row's restricted distribution, by the Gumbel-max trick."""
    from_best = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = from_best / jnp.maximum(rows.temperature, _GREEDY_BELOW)[:, None]
    restricts = (rows.top_k > 0) | (rows.top_p < 1.0) | (rows.min_p > 0.0)
    scaled = lax.cond(
        jnp.any(rows.samples & restricts), lambda x: _restrict(x, rows), lambda x: x, scaled
    )
    keys = jax.vmap(jax.random.fold_in)(
        jax.random.wrap_key_data(rows.seeds, impl="threefry2x32"), rows.positions
    )
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
    return jnp.argmax(scaled + noise, axis=-1).astype(jnp.int32)


def _restrict(scaled: Float[Array, "B V"], rows: SamplingRows) -> Float[Array, "B V"]:
    """Sets what min-p, top-k and top-p leave out to -inf. Ties with the last one kept stay.

    Rows of `scaled` have their maximum at 0.
    """
    vocab_size = scaled.shape[-1]
    least = jnp.where(rows.min_p > 0.0, jnp.log(rows.min_p), -jnp.inf)
    kept = jnp.where(scaled >= least[:, None], scaled, -jnp.inf)
    order = _ordered(kept)
    wanted = jnp.where(rows.top_k > 0, rows.top_k, vocab_size).astype(jnp.float32)
    kth = _threshold(order, jnp.ones_like(kept), wanted)
    kept = jnp.where(order >= kth[:, None], kept, -jnp.inf)
    # All-kept rows ask for more than there is, so rounding cannot cut them.
    mass = jnp.where(rows.top_p < 1.0, rows.top_p, 2.0)
    nucleus = _threshold(order, jax.nn.softmax(kept, axis=-1), mass)
    return jnp.where(order >= nucleus[:, None], kept, -jnp.inf)


def _ordered(values: Float[Array, "B V"]) -> UInt32[Array, "B V"]:
    """Unsigned integers in the same order as the floats."""
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _threshold(
    order: UInt32[Array, "B V"], weights: Float[Array, "B V"], wanted: Float[Array, " B"]
) -> UInt32[Array, " B"]:
    """The greatest t of each row for which the weights at `order` >= t sum to `wanted`.

    0 if all together do not. A search bit by bit: exact, and 32 sums instead of a sort.
    """

    def try_bit(i: Int32[Array, ""], found: UInt32[Array, " B"]) -> UInt32[Array, " B"]:
        candidate = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        weight = jnp.sum(jnp.where(order >= candidate[:, None], weights, 0.0), axis=-1)
        return jnp.where(weight >= wanted, candidate, found)

    return lax.fori_loop(0, 32, try_bit, jnp.zeros(order.shape[0], jnp.uint32))


def _with_logprobs(logits: Float[Array, "B V"], token_ids: Int32[Array, " B"]) -> Sampled:
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    top, ids = lax.top_k(logprobs, min(MAX_ALTERNATIVES, logits.shape[-1]))
    chosen = jnp.take_along_axis(logprobs, token_ids[:, None], axis=-1)[:, 0]
    return Sampled(token_ids, chosen, ids.astype(jnp.int32), top)


def _alone(logits: Float[Array, "B V"], token_ids: Int32[Array, " B"]) -> Sampled:
    num_rows, num_top = logits.shape[0], min(MAX_ALTERNATIVES, logits.shape[-1])
    return Sampled(
        token_ids,
        jnp.zeros(num_rows, jnp.float32),
        jnp.zeros((num_rows, num_top), jnp.int32),
        jnp.zeros((num_rows, num_top), jnp.float32),
    )
