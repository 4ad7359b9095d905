"""`memserve bench pool`: MemServe's microbenchmarks of its memory pool, on this machine.

Figure 9 (the calls), figure 10 (the index by tokens), figure 13 (TTFT by what is cached) and
what the paper does not show: how a match depends on all that is cached.
"""

import contextlib
import functools
import pathlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass

import jax

from memserve_jax.bench.pool_calls import CallBench, CallTime, IndexTime
from memserve_jax.bench.pool_scale import ScaleBench, ScaleTime
from memserve_jax.bench.pool_ttft import BLOCK_SIZE_TOKENS, TtftBench, TtftTime
from memserve_jax.core.embedded import BENCH_SHAPE, CheckpointShape
from memserve_jax.core.types import Tier

PARTS = ("calls", "index", "scale", "ttft")

Progress = Callable[[int, int, str], None]  # done, total, what


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolBenchOptions:
    """What to measure."""

    parts: tuple[str, ...] = PARTS
    num_rounds: int = 200  # of figures 9 and 10
    alloc_blocks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    prompt_blocks: tuple[int, ...] = (64, 128, 256)
    percents: tuple[int, ...] = (0, 20, 50, 80, 100)  # cached
    index_tokens: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048, 4096)
    cached_blocks: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    hit_blocks: tuple[int, ...] = (16, 64, 128, 256, 512)
    scale_rounds: int = 100
    prompt_tokens: tuple[int, ...] = (1024, 2048, 4096)  # of figure 13
    ttft_percents: tuple[int, ...] = (20, 50, 80, 100)
    ttft_rounds: int = 3
    tiers: tuple[Tier, ...] = (Tier.HBM, Tier.HOST, Tier.DISK)
    shape: CheckpointShape = BENCH_SHAPE
    chunk_tokens: int = 512


def quick_options(parts: tuple[str, ...] = PARTS) -> PoolBenchOptions:
    """Returns options that end within a minute, for a look whether all of it works."""
    return PoolBenchOptions(
        parts=parts,
        num_rounds=10,
        cached_blocks=(1_000, 10_000),
        scale_rounds=10,
        prompt_tokens=(256,),
        ttft_percents=(50, 100),
        ttft_rounds=2,
        shape=CheckpointShape(),
        chunk_tokens=128,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolBenchReport:
    """What was measured, and on what; the parts not asked for are empty."""

    device: str
    num_rounds: int
    ttft_rounds: int
    ttft_parameters: int | None  # of figure 13's model; None: not measured
    calls: tuple[CallTime, ...]
    index: tuple[IndexTime, ...]
    scale: tuple[ScaleTime, ...]
    ttft: tuple[TtftTime, ...]

    def to_mapping(self) -> dict[str, object]:
        """Returns plain values, for JSON."""
        return asdict(self)


def run(options: PoolBenchOptions, *, progress: Progress | None = None) -> PoolBenchReport:
    """Measures the parts asked for, one after another, on the first device."""
    steps = _Steps(options, progress)
    calls: tuple[CallTime, ...] = ()
    index: tuple[IndexTime, ...] = ()
    if {"calls", "index"} & set(options.parts):
        most = max(*options.alloc_blocks, *options.prompt_blocks)
        bench = CallBench(max(most, max(options.index_tokens) // BLOCK_SIZE_TOKENS))
        if "calls" in options.parts:
            calls = bench.measure_calls(
                alloc_blocks=options.alloc_blocks,
                prompt_blocks=options.prompt_blocks,
                percents=options.percents,
                num_rounds=options.num_rounds,
            )
            steps.done("calls")
        if "index" in options.parts:
            index = bench.measure_index(options.index_tokens, options.num_rounds)
            steps.done("index")
    scale = _scale(options, steps) if "scale" in options.parts else []
    ttft, num_parameters = _ttft(options, steps) if "ttft" in options.parts else ([], None)
    return PoolBenchReport(
        device=jax.devices()[0].device_kind,
        num_rounds=options.num_rounds,
        ttft_rounds=options.ttft_rounds,
        ttft_parameters=num_parameters,
        calls=calls,
        index=index,
        scale=tuple(scale),
        ttft=tuple(ttft),
    )


class _Steps:
    """Tells how far the bench is: one step a part, a pool size or a round of figure 13."""

    def __init__(self, options: PoolBenchOptions, progress: Progress | None):
        self._progress = progress
        self._num_done = 0
        self._total = sum(
            {
                "calls": 1,
                "index": 1,
                "scale": len(options.cached_blocks),
                "ttft": len(options.prompt_tokens) * (options.ttft_rounds + 1),
            }[part]
            for part in options.parts
        )

    def done(self, what: str) -> None:
        """Notes that one step has ended."""
        self._num_done += 1
        if self._progress:
            self._progress(self._num_done, self._total, what)


def _scale(options: PoolBenchOptions, steps: _Steps) -> list[ScaleTime]:
    bench = ScaleBench(
        most_blocks=max(options.cached_blocks),
        prompt_blocks=max(options.hit_blocks),
        num_rounds=options.scale_rounds,
    )
    found: list[ScaleTime] = []
    for cached_blocks in sorted(options.cached_blocks):
        found += bench.measure(cached_blocks, options.hit_blocks)
        steps.done(f"{cached_blocks:,} blocks cached")
    return found


def _ttft(options: PoolBenchOptions, steps: _Steps) -> tuple[list[TtftTime], int]:
    found: list[TtftTime] = []
    with tempfile.TemporaryDirectory(prefix="memserve-bench-") as folder:
        bench = TtftBench(
            shape=options.shape,
            most_tokens=max(options.prompt_tokens),
            chunk_tokens=options.chunk_tokens,
            folder=pathlib.Path(folder),
        )
        with contextlib.closing(bench):
            for prompt_tokens in options.prompt_tokens:
                found += bench.measure(
                    prompt_tokens,
                    options.tiers,
                    options.ttft_percents,
                    options.ttft_rounds,
                    told=functools.partial(steps.done, f"prompts of {prompt_tokens} tokens"),
                )
    return found, bench.num_parameters
