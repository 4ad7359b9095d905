"""Time to the first token by how much of a prompt is cached, and where: the paper's figure 13.

One engine serves one request at a time. A base prompt is kept in the tier asked for; a measured
prompt begins with part of it and goes on with tokens nobody has seen. Every round has a cold
prompt of its own, and shares are of that one, because machines have moods. Files of the DISK
tier were written shortly before, so that they come out of the system's page cache.
"""

import pathlib
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from memserve_jax.bench import pool_paper
from memserve_jax.core.clock import SystemClock
from memserve_jax.core.config import EngineSection, MemPoolSection
from memserve_jax.core.embedded import CheckpointShape, cached_checkpoint
from memserve_jax.core.model_card import load_card
from memserve_jax.core.tokenizer import load_tokenizer
from memserve_jax.core.types import (
    CachingMode,
    InstanceId,
    Request,
    RequestId,
    Role,
    SamplingParams,
    Tier,
)
from memserve_jax.engine.engine import Engine
from memserve_jax.engine.events import Tokens
from memserve_jax.engine.inputs import Column
from memserve_jax.engine.steps import Steps
from memserve_jax.mempool.disk import DiskOptions
from memserve_jax.mempool.pool import MemPool
from memserve_jax.model.loader import load_model
from memserve_jax.parallel.mesh import make_mesh

BLOCK_SIZE_TOKENS = 16
_TIMEOUT_S = 120.0  # of what the disk does
_NAP_S = 0.05  # at most, while the engine can only wait
_SAMPLING = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TtftTime:
    """One point of figure 13: medians over rounds."""

    prompt_tokens: int
    tier: str | None  # None: cold
    cached_percent: int
    cached_tokens: int  # as the engine counted them
    ttft_s: float
    percent_of_cold: float  # the median of the rounds' own shares
    paper_percent: float | None  # None: not in the figure


class TtftBench:
    """A colocated engine over a pool whose prompts are placed by hand."""

    def __init__(
        self, *, shape: CheckpointShape, most_tokens: int, chunk_tokens: int, folder: pathlib.Path
    ):
        """Loads random weights.

        Args:
          shape: Of the model; prefill must cost more than the copies between tiers.
          most_tokens: Of the longest prompt.
          chunk_tokens: Of a prefill step.
          folder: Of the DISK tier; what is in it must be of this bench.
        """
        path = cached_checkpoint(shape, seed=0)
        mesh = make_mesh(jax.devices()[:1], 1)
        bundle = load_model(path, mesh=mesh, dtype="float32")
        self.num_parameters = sum(weight.size for weight in bundle.params.values())
        self._vocab_size = shape.vocab_size
        num_blocks = most_tokens // BLOCK_SIZE_TOKENS + 1
        clock = SystemClock()
        self._clock = clock
        layout = bundle.config.layout(BLOCK_SIZE_TOKENS, "float32")
        self._host_blocks = 2 * num_blocks
        self._on_disk: tuple[int, ...] = ()  # the base prompt that has files
        self._num_files = 0  # written for all base prompts so far, or soon
        self._pool = MemPool(
            instance=InstanceId("bench"),
            epoch=1,
            layout=layout,
            mesh=mesh,
            hbm_blocks=2 * num_blocks + 2,
            host_blocks=self._host_blocks,
            disk=DiskOptions(
                folder=folder, num_bytes=8 * num_blocks * layout.block_bytes, model="bench"
            ),
            clock=clock,
        )
        self._woken = threading.Event()
        self._pool.wake = self._woken.set
        self._engine = Engine(
            instance=InstanceId("bench"),
            role=Role.COLOCATED,
            caching=CachingMode.ON,
            config=EngineSection(
                max_context_tokens=num_blocks * BLOCK_SIZE_TOKENS,
                max_running=1,
                chunk_tokens=chunk_tokens,
            ),
            bundle=bundle,
            pool=self._pool,
            card=load_card(path),
            tokenizer=load_tokenizer(path),
            clock=clock,
            mempool=MemPoolSection(prefetch_timeout_s=_TIMEOUT_S),
            steps=Steps(bundle, num_rows=1, line_width=Column.TABLE + num_blocks),
        )
        self._random = np.random.default_rng(0)
        self._num_requests = 0

    def close(self) -> None:
        """Ends what the pool does on DISK."""
        self._pool.close()

    def measure(
        self,
        prompt_tokens: int,
        tiers: Sequence[Tier],
        percents: Sequence[int],
        num_rounds: int,
        *,
        told: Callable[[], None],
    ) -> list[TtftTime]:
        """Times prompts of one length, cold and with each share cached in each tier.

        One round more is played first, which compiles; `told` is called after each.
        """
        base = self._tokens(prompt_tokens)
        self._serve(base)
        cases = [(tier, percent) for tier in tiers for percent in percents]
        cached: dict[tuple[Tier, int], int] = {}
        cold_s: list[float] = []
        times_s: dict[tuple[Tier, int], list[float]] = {case: [] for case in cases}
        for round_ in range(num_rounds + 1):
            fresh = self._tokens(prompt_tokens)
            cold, num_cached = self._serve(fresh)
            assert num_cached == 0, "a new prompt was not cold"
            self._pool.delete(fresh)
            taken_s = {case: self._time(base, case, cached) for case in cases}
            if round_:
                cold_s.append(cold)
                for case, seconds in taken_s.items():
                    times_s[case].append(seconds)
            told()
        self._pool.delete(base)
        return [
            _report(prompt_tokens, None, 0, 0, cold_s, cold_s),
            *(
                _report(prompt_tokens, *case, cached[case], times, cold_s)
                for case, times in times_s.items()
            ),
        ]

    def _time(
        self, base: tuple[int, ...], case: tuple[Tier, int], cached: dict[tuple[Tier, int], int]
    ) -> float:
        """Returns the TTFT of a prompt that begins with the case's share of `base`."""
        tier, percent = case
        num_held = len(base) * percent // 100 // BLOCK_SIZE_TOKENS * BLOCK_SIZE_TOKENS
        prompt = base[:num_held] + self._tokens(len(base) - num_held)
        self._place(base, tier)
        seconds, num_cached = self._serve(prompt)
        # The last token is always computed, so a prompt that is held whole lacks a block.
        most = (len(prompt) - 1) // BLOCK_SIZE_TOKENS * BLOCK_SIZE_TOKENS
        assert num_cached == min(num_held, most), f"{num_cached} tokens cached, not {num_held}"
        cached[case] = num_cached
        if prompt != base:
            self._pool.delete(prompt)
        return seconds

    def _place(self, base: tuple[int, ...], tier: Tier) -> None:
        """Brings the whole base prompt to `tier`, and waits until it is there."""
        num_blocks = len(base) // BLOCK_SIZE_TOKENS
        self._bring_to_hbm(base)
        if tier is not Tier.HBM:
            self._pool.swap_out(num_blocks)
        if tier is Tier.DISK:
            self._pool.alloc_mem(self._host_blocks, Tier.HOST).close()  # evicts all of HOST
            if self._on_disk != base:  # a block that comes back from DISK keeps its file
                self._on_disk, self._num_files = base, self._num_files + num_blocks
            self._await_files()
        jax.block_until_ready(self._pool.pages)
        self._pool.poll()
        with self._pool.match_whole(base) as lease:
            found = {address.tier for address in lease.blocks}
        assert found == {tier}, f"the base prompt is in {sorted(found)}, not in {tier}"

    def _bring_to_hbm(self, base: tuple[int, ...]) -> None:
        # One token more: a prefetch leaves out what a prefill computes in any case.
        prefetch = self._pool.prefetch((*base, 0), timeout_s=_TIMEOUT_S)
        while not prefetch.is_done:
            self._woken.wait(_NAP_S)
            self._pool.poll()

    def _await_files(self) -> None:
        end_s = self._clock.now_s() + _TIMEOUT_S
        while self._pool.counters.disk_blocks_written < self._num_files:
            assert not self._pool.counters.disk_blocks_skipped, "DISK did not take a block"
            assert self._clock.now_s() < end_s, "DISK takes too long"
            self._woken.wait(_NAP_S)
            self._pool.poll()

    def _serve(self, prompt: tuple[int, ...]) -> tuple[float, int]:
        """Serves one prompt to its first token; returns the seconds and the tokens cached."""
        self._num_requests += 1
        request = Request(
            request_id=RequestId(f"r{self._num_requests}"),
            session_id="",
            prompt_token_ids=prompt,
            sampling=_SAMPLING,
        )
        start_s = self._clock.now_s()
        self._engine.submit(request)
        while True:
            self._woken.clear()
            for event in self._engine.step():
                if isinstance(event, Tokens) and event.usage is not None:
                    seconds = self._clock.now_s() - start_s
                    while self._engine.has_work:
                        self._engine.step()
                    return seconds, event.usage.cached_tokens
                assert isinstance(event, Tokens), f"the engine said {event}"
            if not self._engine.has_work:
                self._woken.wait(_NAP_S)

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._random.integers(3, self._vocab_size, count).tolist())


def _report(
    prompt_tokens: int,
    tier: Tier | None,
    percent: int,
    cached_tokens: int,
    times_s: Sequence[float],
    cold_s: Sequence[float],
) -> TtftTime:
    shares = [100 * warm / cold for warm, cold in zip(times_s, cold_s, strict=True)]
    paper = pool_paper.TTFT_PERCENT.get(tier, {}) if tier else {}
    return TtftTime(
        prompt_tokens=prompt_tokens,
        tier=None if tier is None else str(tier),
        cached_percent=percent,
        cached_tokens=cached_tokens,
        ttft_s=statistics.median(times_s),
        percent_of_cold=statistics.median(shares),
        paper_percent=paper.get(prompt_tokens, {}).get(percent),
    )
