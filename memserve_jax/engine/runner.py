"""The device side of a step: jitted forward + sampling, dispatched ahead, read once.

`dispatch_*` returns at once; `read` waits. Pages and sampling state are donated to every step and
rebound, so steps, copies and swaps run on the device in the order they were dispatched here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int32

from memserve_jax.engine.buckets import Ladder
from memserve_jax.engine.inputs import RowTable, decode_batch, mixed_batch, unpack_lines
from memserve_jax.engine.sampling import (
    Sampled,
    SamplingState,
    empty_state,
    sample,
    set_history,
)
from memserve_jax.mempool.pool import MemPool
from memserve_jax.model.bundle import ModelBundle
from pallas_kernels.pages import KVPages

Progress = Callable[[int, int, str], None]  # done, total, what was compiled


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step sampled, on the host; a line per row of the step."""

    token_ids: list[int]
    logprobs: np.ndarray  # f32 [B]; zeros unless a row of the step asked
    top_token_ids: np.ndarray  # i32 [B, A]
    top_logprobs: np.ndarray  # f32 [B, A]


class Runner:
    """Owns the compiled steps and the sampling state of one engine; borrows the pool's pages."""

    def __init__(self, bundle: ModelBundle, pool: MemPool, *, ladder: Ladder, rows: RowTable):
        self._params = bundle.params
        self._pool = pool
        self._ladder = ladder
        self._rows = rows
        self._vocab_size = bundle.config.vocab_size
        self._num_compiled = 0
        replicated = NamedSharding(bundle.mesh, PartitionSpec())
        num_rows = rows.lines.shape[0]
        self._state: SamplingState = jax.jit(
            partial(empty_state, num_rows, self._vocab_size), out_shardings=replicated
        )()
        page_shardings = jax.tree.map(lambda page: page.sharding, pool.pages)
        self._decode = self._jit(partial(_decode, bundle), page_shardings, replicated)
        self._mixed = self._jit(
            partial(_mixed, bundle, *rows.lines.shape), page_shardings, replicated
        )
        self._set_history = jax.jit(set_history, donate_argnums=0, out_shardings=replicated)

    @property
    def num_compiled(self) -> int:
        """Step shapes compiled so far."""
        return self._num_compiled

    def dispatch_decode(self, rows: Sequence[int]) -> Array:
        """Starts a step of single-token rows, as scheduled in the row table. For `read`."""
        return self._run(self._decode, self._rows.pack_decode(rows, self._ladder.rows(len(rows))))

    def dispatch_mixed(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], num_tokens: int
    ) -> Array:
        """Starts a step of `rows`, ascending, with these new tokens. For `read`.

        Line r of its result is row r of the engine.
        """
        bucket = self._ladder.tokens(num_tokens)
        return self._run(self._mixed, self._rows.pack_mixed(rows, token_ids, bucket))

    def read(self, step: Array) -> StepResult:
        """Waits for a dispatched step and brings its tokens to the host."""
        lines = np.asarray(step)  # SYNC
        floats = lines.view(np.float32)
        num_top = (lines.shape[1] - 2) // 2
        return StepResult(
            token_ids=lines[:, 0].tolist(),
            logprobs=floats[:, 1],
            top_token_ids=lines[:, 2 : 2 + num_top],
            top_logprobs=floats[:, 2 + num_top :],
        )

    def set_history(self, row: int, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Tells the penalties of `row` which tokens came before."""
        counts = np.bincount(np.asarray(answer, np.int64), minlength=self._vocab_size)
        in_prompt = np.zeros(self._vocab_size, np.bool_)
        in_prompt[np.asarray(prompt, np.int64)] = True
        self._state = self._set_history(
            self._state, np.int32(row), counts.astype(np.int32), in_prompt
        )

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compiles every rung by running it on padding, and waits for the last."""
        done, total = 0, len(self._ladder)
        for kind, rungs, dispatch in (
            ("decode, rows", self._ladder.decode_rows, self._warm_decode),
            ("prefill, tokens", self._ladder.mixed_tokens, self._warm_mixed),
        ):
            for rung in rungs:
                self.read(dispatch(rung))
                done += 1
                if progress:
                    progress(done, total, f"{kind} {rung}")
        self._state = self._set_history(
            self._state,
            np.int32(0),
            np.zeros(self._vocab_size, np.int32),
            np.zeros(self._vocab_size, np.bool_),
        )

    def _warm_decode(self, rung: int) -> Array:
        return self._run(self._decode, self._rows.pack_decode([], rung))

    def _warm_mixed(self, rung: int) -> Array:
        return self._run(self._mixed, self._rows.pack_mixed([], [], rung))

    def _run(self, step: Callable[..., Any], packed: np.ndarray) -> Array:
        self._pool.pages, self._state, result = step(
            self._params, self._pool.pages, self._state, packed
        )
        return result

    def _jit(
        self, step: Callable[..., Any], pages: KVPages, replicated: NamedSharding
    ) -> Callable[..., Any]:
        def counted(params: Any, pages: KVPages, state: SamplingState, packed: Array):
            self._num_compiled += 1  # runs when traced: once a shape
            return step(params, pages, state, packed)

        return jax.jit(
            counted, donate_argnums=(1, 2), out_shardings=(pages, replicated, replicated)
        )


def _decode(
    bundle: ModelBundle,
    params: Any,
    pages: KVPages,
    state: SamplingState,
    lines: Int32[Array, "B C"],
) -> tuple[KVPages, SamplingState, Int32[Array, "B W"]]:
    rows = unpack_lines(lines)
    batch = decode_batch(
        rows, state.last_tokens, page_size=pages.page_size, num_pages=pages.num_pages
    )
    logits, pages = bundle.decode(params, pages, batch)
    with jax.named_scope("sample"):
        sampled, state = sample(logits, state, rows.sampling)
    return pages, state, _pack(sampled)


def _mixed(
    bundle: ModelBundle,
    num_rows: int,
    width: int,
    params: Any,
    pages: KVPages,
    state: SamplingState,
    packed: Int32[Array, " N"],
) -> tuple[KVPages, SamplingState, Int32[Array, "R W"]]:
    num_tokens = packed.shape[0] - num_rows * width
    rows = unpack_lines(packed[num_tokens:].reshape(num_rows, width))
    batch = mixed_batch(
        packed[:num_tokens],
        rows,
        state.last_tokens,
        page_size=pages.page_size,
        num_pages=pages.num_pages,
    )
    logits, pages = bundle.prefill(params, pages, batch)
    with jax.named_scope("sample"):
        sampled, state = sample(logits, state, rows.sampling)
    return pages, state, _pack(sampled)


def _pack(sampled: Sampled) -> Int32[Array, "B W"]:
    """One array, so that a step is one read: token, logprob, alternatives, their logprobs."""
    bits = partial(lax.bitcast_convert_type, new_dtype=jnp.int32)
    return jnp.concatenate(
        [
            sampled.token_ids[:, None],
            bits(sampled.logprobs)[:, None],
            sampled.top_token_ids,
            bits(sampled.top_logprobs),
        ],
        axis=1,
    )
