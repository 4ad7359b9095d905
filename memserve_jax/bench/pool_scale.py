"""How the index's times change with what it holds: flat in its size, linear in the hit.

Prompts come in families that share a beginning, as conversations share their system prompt, so
the tree has forks; each measured prompt is another one, so nothing is warm in a cache.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memserve_jax.core.block_keys import BlockKeys, joined_keys
from memserve_jax.core.types import Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.index import PrefixIndex

_KEY_BYTES = 64  # 16 tokens
_SHARED_BLOCKS = 64  # of the prompts of a family
_FAMILY = 8  # prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleTime:
    """Times with so many blocks cached: medians over rounds. Keys are made beforehand."""

    cached_blocks: int
    hit_blocks: int
    match_us: float
    least_match_us: float
    insert_us_per_block: float  # of a new prompt of as many blocks


class ScaleBench:
    """An index without pages, filled step by step."""

    def __init__(self, *, most_blocks: int, prompt_blocks: int, num_rounds: int):
        """Makes an empty index.

        Args:
          most_blocks: It will hold.
          prompt_blocks: Of every prompt it is filled with; the longest hit.
          num_rounds: Matches and inserts of each length that are measured.
        """
        self._prompt_blocks = prompt_blocks
        self._num_rounds = num_rounds
        self._random = np.random.default_rng(0)
        self._allocator = BlockAllocator(Tier.HBM, most_blocks + 2 * prompt_blocks)
        self._index = PrefixIndex({Tier.HBM: self._allocator})
        self._family: list[bytes] = []
        self._prompts: list[list[bytes]] = []

    def measure(self, cached_blocks: int, hits: Sequence[int]) -> list[ScaleTime]:
        """Fills the index up to `cached_blocks` and times hits of each length in turns."""
        while len(self._index) + self._prompt_blocks <= cached_blocks:
            keys = self._new_prompt()
            self._prompts.append(keys)
            self._insert(joined_keys(keys))
        match_us: dict[int, list[float]] = {hit: [] for hit in hits}
        insert_us: dict[int, list[float]] = {hit: [] for hit in hits}
        for _ in range(self._num_rounds):
            for hit in hits:
                match_us[hit].append(self._time_match(hit))
                insert_us[hit].append(self._time_insert(hit) / hit)
        return [
            ScaleTime(
                cached_blocks=cached_blocks,
                hit_blocks=hit,
                match_us=statistics.median(match_us[hit]),
                least_match_us=min(match_us[hit]),
                insert_us_per_block=statistics.median(insert_us[hit]),
            )
            for hit in hits
        ]

    def _new_prompt(self) -> list[bytes]:
        if len(self._prompts) % _FAMILY == 0:
            self._family = self._keys(min(_SHARED_BLOCKS, self._prompt_blocks // 2))
        return self._family + self._keys(self._prompt_blocks - len(self._family))

    def _keys(self, count: int) -> list[bytes]:
        text = self._random.bytes(count * _KEY_BYTES)
        return [text[i : i + _KEY_BYTES] for i in range(0, len(text), _KEY_BYTES)]

    def _insert(self, keys: BlockKeys) -> float:
        """Adds a prompt with blocks of its own and leaves them idle; returns the index's us."""
        blocks = self._allocator.alloc(len(keys))
        start_ns = time.perf_counter_ns()
        added = self._index.add(Tier.HBM, "", keys, blocks)
        end_ns = time.perf_counter_ns()
        self._allocator.share(added.kept)
        self._index.became_idle(Tier.HBM, self._allocator.release(blocks + added.kept))
        return (end_ns - start_ns) / 1e3

    def _time_match(self, hit: int) -> float:
        prompt = self._prompts[int(self._random.integers(len(self._prompts)))]
        keys = joined_keys([*prompt[:hit], *self._keys(1)])
        start_ns = time.perf_counter_ns()
        path = self._index.find("", keys)
        end_ns = time.perf_counter_ns()
        assert len(path) == hit, f"{len(path)} blocks found, {hit} are cached"
        return (end_ns - start_ns) / 1e3

    def _time_insert(self, num_blocks: int) -> float:
        keys = joined_keys(self._keys(num_blocks))
        taken_us = self._insert(keys)
        self._index.delete("", keys)
        return taken_us
