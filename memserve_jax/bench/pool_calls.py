"""What the pool's memory and index calls cost on the host: the paper's figures 9 and 10.

Every round makes every call once, on prompts nobody has seen, so that the moods of the machine
hit all of them alike. Tokens come in as a tuple of ints and leave as a lease: nothing that a
caller needs is left out, and nothing runs on a device.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from memserve_jax.bench import pool_paper
from memserve_jax.core.clock import SystemClock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId
from memserve_jax.mempool.pool import MemPool
from memserve_jax.parallel.mesh import make_mesh

BLOCK_SIZE_TOKENS = 16  # the paper's
_VOCAB_SIZE = 32000
_SPARE_BLOCKS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTime:
    """One call of figure 9: medians and minima over rounds."""

    call: str  # alloc, free, insert or match
    num_blocks: int
    cached_percent: int | None  # of the prompt, before the call; None: no prompt is involved
    median_us: float
    least_us: float
    paper_us: float | None  # None: not in the figure


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexTime:
    """Figure 10: the index's share of a prompt's life where nothing is cached."""

    num_tokens: int
    match_us: float  # medians
    insert_us: float
    index_ms: float  # of both
    paper_hash_ms: float | None
    paper_radix_ms: float | None


class CallBench:
    """One pool with pages of a few bytes, and the calls over it."""

    def __init__(self, max_blocks: int):
        """Makes a pool that holds prompts of up to `max_blocks` blocks."""
        self._pool = MemPool(
            instance=InstanceId("bench"),
            epoch=1,
            layout=KVLayout(
                num_layers=1,
                num_kv_heads=1,
                block_size_tokens=BLOCK_SIZE_TOKENS,
                head_dim=2,
                dtype="float32",
            ),
            mesh=make_mesh(jax.devices()[:1], 1),
            hbm_blocks=4 * max_blocks + _SPARE_BLOCKS,
            clock=SystemClock(),
        )
        self._random = np.random.default_rng(0)
        resident = self._prompt(_SPARE_BLOCKS // 2)  # an index in use is never empty
        with self._pool.alloc_mem(_SPARE_BLOCKS // 2) as lease:
            self._pool.insert(resident, lease)
        self._times_us: dict[tuple[str, int, int | None], list[float]] = {}

    def measure_calls(
        self,
        *,
        alloc_blocks: Sequence[int],
        prompt_blocks: Sequence[int],
        percents: Sequence[int],
        num_rounds: int,
    ) -> tuple[CallTime, ...]:
        """Times figure 9's calls: memory by blocks, the index by blocks and per cent cached."""
        self._times_us.clear()
        for _ in range(num_rounds):
            for num_blocks in alloc_blocks:
                self._time_memory(num_blocks)
            for num_blocks in prompt_blocks:
                for percent in percents:
                    self._time_index(num_blocks, percent)
        return tuple(
            CallTime(
                call=call,
                num_blocks=num_blocks,
                cached_percent=percent,
                median_us=statistics.median(times),
                least_us=min(times),
                paper_us=_paper_us(call, num_blocks, percent),
            )
            for (call, num_blocks, percent), times in self._times_us.items()
        )

    def measure_index(self, tokens: Sequence[int], num_rounds: int) -> tuple[IndexTime, ...]:
        """Times figure 10: a match that finds nothing, and the insert after the prefill."""
        self._times_us.clear()
        blocks = {num_tokens: num_tokens // BLOCK_SIZE_TOKENS for num_tokens in tokens}
        for _ in range(num_rounds):
            for num_blocks in blocks.values():
                self._time_index(num_blocks, 0)
        found: list[IndexTime] = []
        for num_tokens, num_blocks in blocks.items():
            match_us = self._times_us["match", num_blocks, 0]
            insert_us = self._times_us["insert", num_blocks, 0]
            both_us = [sum(pair) for pair in zip(match_us, insert_us, strict=True)]
            found.append(
                IndexTime(
                    num_tokens=num_tokens,
                    match_us=statistics.median(match_us),
                    insert_us=statistics.median(insert_us),
                    index_ms=statistics.median(both_us) / 1e3,
                    paper_hash_ms=pool_paper.HASH_INDEX_MS.get(num_tokens),
                    paper_radix_ms=pool_paper.RADIX_INDEX_MS.get(num_tokens),
                )
            )
        return tuple(found)

    def _time_memory(self, num_blocks: int) -> None:
        start_ns = time.perf_counter_ns()
        lease = self._pool.alloc_mem(num_blocks)
        leased_ns = time.perf_counter_ns()
        self._pool.free_mem(lease)
        freed_ns = time.perf_counter_ns()
        self._note("alloc", num_blocks, None, leased_ns - start_ns)
        self._note("free", num_blocks, None, freed_ns - leased_ns)

    def _time_index(self, num_blocks: int, percent: int) -> None:
        pool = self._pool
        prompt = self._prompt(num_blocks)
        num_cached = num_blocks * percent // 100
        with pool.alloc_mem(num_cached) as before:
            pool.insert(prompt[: num_cached * BLOCK_SIZE_TOKENS], before)
        start_ns = time.perf_counter_ns()
        lease = pool.match_whole(prompt)
        matched_ns = time.perf_counter_ns()
        assert len(lease) == num_cached, f"{len(lease)} blocks matched, {num_cached} are cached"
        with lease:
            lease.absorb(pool.alloc_mem(num_blocks - num_cached))
            begin_ns = time.perf_counter_ns()
            num_new = pool.insert(prompt, lease)
            end_ns = time.perf_counter_ns()
        assert num_new == (num_blocks - num_cached) * BLOCK_SIZE_TOKENS
        self._note("match", num_blocks, percent, matched_ns - start_ns)
        self._note("insert", num_blocks, percent, end_ns - begin_ns)
        pool.delete(prompt)

    def _prompt(self, num_blocks: int) -> tuple[int, ...]:
        count = num_blocks * BLOCK_SIZE_TOKENS
        return tuple(self._random.integers(0, _VOCAB_SIZE, count).tolist())

    def _note(self, call: str, num_blocks: int, percent: int | None, taken_ns: int) -> None:
        self._times_us.setdefault((call, num_blocks, percent), []).append(taken_ns / 1e3)


def _paper_us(call: str, num_blocks: int, percent: int | None) -> float | None:
    if percent is None:
        return {"alloc": pool_paper.ALLOC_US, "free": pool_paper.FREE_US}[call].get(num_blocks)
    times = {"insert": pool_paper.INSERT_US, "match": pool_paper.MATCH_US}[call]
    return times.get(num_blocks, {}).get(percent)
