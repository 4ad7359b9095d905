"""`memserve bench route`: what routing costs, and what the way through the scheduler costs."""

import itertools
import pathlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from memserve_jax.bench.route_decide import DecisionBench, DecisionTime, TreeTime, hash_us
from memserve_jax.bench.route_proxy import ProxyOptions, ProxyReport, proxy_bench

PARTS = ("decide", "proxy")
HASH_TOKENS = 8192
TREE_PROMPT_BLOCKS = 512

Progress = Callable[[int, int | None, str], None]  # done, total, what


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteOptions:
    """What to measure."""

    parts: tuple[str, ...] = PARTS
    instances: tuple[int, ...] = (1, 16, 256, 4096)
    blocks: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    prompt_tokens: tuple[int, ...] = (128, 1024, 4096, 32_768)
    policy: str = "min_ttft"
    rounds: int = 200
    proxy: ProxyOptions = field(default_factory=ProxyOptions)


def quick_options(parts: tuple[str, ...], policy: str) -> RouteOptions:
    """Returns options that end within a minute."""
    return RouteOptions(
        parts=parts,
        instances=(1, 256),
        blocks=(1_000, 10_000),
        prompt_tokens=(128, 4096),
        policy=policy,
        rounds=20,
        proxy=ProxyOptions(
            rounds=1, latency_requests=20, load_requests=32, tokens_per_message=(1, 16)
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HashTime:
    """Naming the blocks of a prompt."""

    num_tokens: int
    median_us: float
    least_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteReport:
    """What was found."""

    decisions: tuple[DecisionTime, ...] = ()
    trees: tuple[TreeTime, ...] = ()
    hashing: HashTime | None = None
    proxy: ProxyReport | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        plain = asdict(self)
        if self.proxy is not None:
            plain["proxy"]["of_bare_relay"] = self.proxy.ratios()
        return plain


def run(options: RouteOptions, progress: Progress | None = None) -> RouteReport:
    """Measures the parts that `options` names."""
    counter = itertools.count()

    def told(what: str) -> None:
        if progress:
            progress(next(counter), None, what)

    decisions: list[DecisionTime] = []
    trees: list[TreeTime] = []
    hashing: HashTime | None = None
    proxy: ProxyReport | None = None
    if "decide" in options.parts:
        for num_instances in options.instances:
            told(f"{num_instances} instances")
            bench = DecisionBench(
                num_instances, most_blocks=max(options.blocks), policy=options.policy
            )
            for num_blocks in sorted(options.blocks):
                bench.fill(num_blocks)
                for prompt_tokens in options.prompt_tokens:
                    decisions.append(bench.measure(prompt_tokens, options.rounds))
            trees.append(bench.measure_tree(TREE_PROMPT_BLOCKS, options.rounds))
        median_us, least_us = hash_us(HASH_TOKENS, options.rounds)
        hashing = HashTime(num_tokens=HASH_TOKENS, median_us=median_us, least_us=least_us)
    if "proxy" in options.parts:
        told("processes start")
        with (
            tempfile.TemporaryDirectory(prefix="memserve-bench-") as folder,
            proxy_bench(options.proxy, pathlib.Path(folder)) as ways,
        ):
            proxy = ways.measure(told)
    return RouteReport(decisions=tuple(decisions), trees=tuple(trees), hashing=hashing, proxy=proxy)
