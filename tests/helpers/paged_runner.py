"""Drives a bundle's prefill and decode over paged KV, greedily, without an engine."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from memserve_jax.model.batch import DecodeBatch, PrefillBatch
from memserve_jax.model.bundle import ModelBundle, Params
from memserve_jax.parallel.mesh import tensor_parallelism
from memserve_jax.parallel.sharding import page_sharding
from pallas_kernels.pages import KVPages


def zero_pages(bundle: ModelBundle, num_blocks: int, block_size: int) -> KVPages:
    """Returns zeroed pages for `bundle` on its mesh."""
    layout = bundle.config.layout(block_size, bundle.dtype)
    shape = layout.page_shape(num_blocks, tensor_parallelism(bundle.mesh))
    sharding = page_sharding(bundle.mesh)

    def pages() -> tuple[jax.Array, ...]:
        zeros = (jnp.zeros(shape, bundle.dtype) for _ in range(layout.num_layers))
        return tuple(jax.device_put(page, sharding) for page in zeros)

    return KVPages(pages(), pages())


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Greedy tokens `[row][step]` and the logits `[row, step, V]` they came from."""

    tokens: list[list[int]]
    logits: np.ndarray


class PagedRunner:
    """One compiled shape a phase: `num_rows` rows, `chunk_tokens` tokens, scattered blocks."""

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        num_rows: int = 8,
        chunk_tokens: int = 256,
        block_size: int = 16,
        max_tokens: int = 736,
    ):
        self._bundle, self._rows, self._chunk, self._block = (
            bundle,
            num_rows,
            chunk_tokens,
            block_size,
        )
        width = -(-max_tokens // block_size)
        self._num_blocks = num_rows * width
        order = np.random.default_rng(0).permutation(self._num_blocks)
        self._tables = order.reshape(num_rows, width).astype(np.int32)
        self._prefill = jax.jit(bundle.prefill, donate_argnums=1)
        self._decode = jax.jit(bundle.decode, donate_argnums=1)

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        steps: int,
        *,
        feed: Sequence[Sequence[int]] = (),
        params: Params | None = None,
    ) -> Answers:
        """Returns `steps` greedy tokens for each prompt, all decoded in one batch.

        Args:
          prompts: At most `num_rows`.
          steps: Tokens an answer.
          feed: Tokens to continue with in place of the sampled ones, for comparing logits.
          params: Weights to use in place of the bundle's.
        """
        params = self._bundle.params if params is None else params
        pages = zero_pages(self._bundle, self._num_blocks, self._block)
        logits, pages = self._prefill_all(prompts, pages, params)
        collected = [logits]
        tokens = [[int(row.argmax())] for row in logits]
        for step in range(1, steps):
            last = [list(f)[step - 1] for f in feed] or [row[-1] for row in tokens]
            lengths = [len(prompt) + step for prompt in prompts]
            out, pages = self._decode(params, pages, self._decode_batch(last, lengths))
            logits = np.asarray(out)[: len(prompts)]
            collected.append(logits)
            for row, row_logits in zip(tokens, logits, strict=True):
                row.append(int(row_logits.argmax()))
        return Answers(tokens=tokens, logits=np.stack(collected, axis=1))

    def _prefill_all(self, prompts, pages, params):
        """Packs prompts into chunks first come first served, several rows a chunk."""
        done = [0] * len(prompts)
        logits = np.zeros((len(prompts), self._bundle.config.vocab_size), np.float32)
        while any(have < len(prompt) for have, prompt in zip(done, prompts, strict=True)):
            budget, taken = self._chunk, [0] * self._rows
            for row, prompt in enumerate(prompts):
                taken[row] = min(budget, len(prompt) - done[row])
                budget -= taken[row]
            batch = self._prefill_batch(prompts, done, taken)
            out, pages = self._prefill(params, pages, batch)
            for row, prompt in enumerate(prompts):
                done[row] += taken[row]
                if taken[row] and done[row] == len(prompt):
                    logits[row] = np.asarray(out)[row]
        return logits, pages

    def _prefill_batch(self, prompts, done, taken) -> PrefillBatch:
        ids = np.zeros(self._chunk, np.int32)
        positions = np.zeros(self._chunk, np.int32)
        slots = np.full(self._chunk, self._num_blocks * self._block, np.int32)
        starts = np.concatenate([[0], np.cumsum(taken)]).astype(np.int32)
        lens = np.zeros(self._rows, np.int32)
        for row, prompt in enumerate(prompts):
            span = np.arange(done[row], done[row] + taken[row])
            where = slice(starts[row], starts[row + 1])
            ids[where] = np.asarray(prompt)[span]
            positions[where] = span
            slots[where] = self._slots(row, span)
            lens[row] = done[row] + taken[row]
        return PrefillBatch(
            *(jnp.asarray(x) for x in (ids, positions, slots, self._tables, starts, lens))
        )

    def _decode_batch(self, last: list[int], lengths: list[int]) -> DecodeBatch:
        ids = np.zeros(self._rows, np.int32)
        positions = np.zeros(self._rows, np.int32)
        slots = np.full(self._rows, self._num_blocks * self._block, np.int32)
        lens = np.zeros(self._rows, np.int32)
        for row, (token, length) in enumerate(zip(last, lengths, strict=True)):
            ids[row], positions[row], lens[row] = token, length - 1, length
            slots[row] = self._slots(row, np.array([length - 1]))[0]
        return DecodeBatch(*(jnp.asarray(x) for x in (ids, positions, slots, self._tables, lens)))

    def _slots(self, row: int, positions: np.ndarray) -> np.ndarray:
        blocks = self._tables[row][positions // self._block]
        return blocks * self._block + positions % self._block
