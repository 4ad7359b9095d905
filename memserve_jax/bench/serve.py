"""`memserve bench serve`: from options to a workload, a load plan and what came of it."""

import asyncio
import dataclasses
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from memserve_jax.bench.dataset import DatasetOptions, load_dataset
from memserve_jax.bench.lengths import parse_lengths
from memserve_jax.bench.load import LoadPlan, LoadResult, drive
from memserve_jax.bench.metrics import Objective, RequestRecord
from memserve_jax.bench.workload import (
    RandomWorkload,
    Session,
    poisson_arrivals_s,
    repeat,
    take,
)
from memserve_jax.core.credentials import PLAIN, Credentials
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.tokenizer import load_tokenizer

DEFAULT_CONCURRENCY = 8
DEFAULT_NUM_REQUESTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of the command, by their own names; ranges are checked by the command."""

    target: str
    credentials: Credentials = PLAIN
    concurrency: int | None = None
    rate: float | None = None  # requests a second
    num_requests: int | None = None
    duration_s: float | None = None
    prompt_tokens: str = "512"
    output_tokens: str = "128"
    turn_tokens: str = "64"
    turns: int = 1
    think_time_s: float = 0.0
    shared_prefix_tokens: int = 0
    shared_prefixes: int = 1
    vocab_size: int = 256
    dataset: str | None = None
    tokenizer: str | None = None
    as_text: bool = False
    temperature: float = 0.0
    ignore_eos: bool = True
    seed: int = 0
    cache_salt: str = ""
    warm_up: int = 1
    timeout_s: float = 300.0
    connect_timeout_s: float = 5.0
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None

    @property
    def objective(self) -> Objective | None:
        """The limits of goodput; None where no limit was given."""
        if self.slo_ttft_s is None and self.slo_tpot_s is None:
            return None
        return Objective(ttft_s=self.slo_ttft_s, tpot_s=self.slo_tpot_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Sessions to play, as often as wanted from the start."""

    sessions: Callable[[], Iterator[Session]]
    num_requests: int | None  # None: without end
    turns_per_session: float | int


def build_workload(options: ServeOptions) -> Workload:
    """Returns the workload that the options describe.

    Raises:
      ConfigError: options that exclude each other or are wrong, or a wrong dataset.
    """
    _check(options)
    output_tokens = parse_lengths(options.output_tokens, option="--output-tokens")
    limit = options.num_requests
    if options.dataset is not None:
        random = np.random.default_rng([options.seed, 3])
        recorded = load_dataset(
            options.dataset,
            DatasetOptions(
                draw_output_tokens=lambda: output_tokens.sample(random),
                count_tokens=_counter(options.tokenizer),
                as_text=options.as_text,
            ),
        )
        num_recorded = sum(len(session.turns) for session in recorded)
        if limit is None and options.duration_s is None:
            limit = num_recorded
        return Workload(
            sessions=lambda: _limited(repeat(recorded), limit),
            num_requests=limit,
            turns_per_session=num_recorded / len(recorded),
        )
    source = RandomWorkload(
        prompt_tokens=parse_lengths(options.prompt_tokens, option="--prompt-tokens"),
        output_tokens=output_tokens,
        turn_tokens=parse_lengths(options.turn_tokens, option="--turn-tokens"),
        num_turns=options.turns,
        shared_prefix_tokens=options.shared_prefix_tokens,
        num_shared_prefixes=options.shared_prefixes,
        vocab_size=options.vocab_size,
        seed=options.seed,
    )
    if limit is None and options.duration_s is None:
        limit = DEFAULT_NUM_REQUESTS
    return Workload(
        sessions=lambda: _limited(source.sessions(), limit),
        num_requests=limit,
        turns_per_session=options.turns,
    )


def build_plan(options: ServeOptions, workload: Workload) -> LoadPlan:
    """Returns how to play `workload`: an open loop where a rate is given, else a closed one.

    Sessions arrive at the rate over the turns of a session, so that requests come at the rate
    once as many sessions end as begin.
    """
    arrivals_s = None
    if options.rate is not None:
        arrivals_s = poisson_arrivals_s(
            options.rate / workload.turns_per_session, seed=options.seed
        )
    return LoadPlan(
        target=options.target,
        credentials=options.credentials,
        concurrency=None if arrivals_s else options.concurrency or DEFAULT_CONCURRENCY,
        arrivals_s=arrivals_s,
        duration_s=options.duration_s,
        think_time_s=options.think_time_s,
        timeout_s=options.timeout_s,
        connect_timeout_s=options.connect_timeout_s,
        temperature=options.temperature,
        sampling_seed=options.seed,
        ignore_eos=options.ignore_eos,
        cache_salt=options.cache_salt,
        id_prefix=f"bench-{uuid.uuid4().hex[:8]}",
    )


def run(
    options: ServeOptions,
    workload: Workload,
    *,
    on_record: Callable[[RequestRecord], None] = lambda record: None,
) -> LoadResult:
    """Warms the target up and measures it.

    The warm-up plays the first requests of the same workload one after another, under a cache
    salt of its own: shapes get compiled, and no later request finds its prefix cached.

    Raises:
      TargetError: the target cannot be reached.
    """
    plan = build_plan(options, workload)
    return asyncio.run(_warm_up_and_drive(options.warm_up, workload, plan, on_record))


async def _warm_up_and_drive(
    num_warm_up: int,
    workload: Workload,
    plan: LoadPlan,
    on_record: Callable[[RequestRecord], None],
) -> LoadResult:
    if num_warm_up:
        warm_up = dataclasses.replace(
            plan,
            concurrency=1,
            arrivals_s=None,
            duration_s=None,
            think_time_s=0.0,
            cache_salt=f"{plan.id_prefix}-warm-up",
            id_prefix=f"{plan.id_prefix}-warm-up",
        )
        await drive(warm_up, take(workload.sessions(), num_warm_up))
    return await drive(plan, workload.sessions(), on_record=on_record)


def _check(options: ServeOptions) -> None:
    _check_target(options.target)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name != "rate" and isinstance(value, float) and not math.isfinite(value):
            name = field.name.replace("_", "-")
            raise ConfigError(f"--{name}: got {value:g}, allowed: a finite number")
    if options.rate is not None and options.concurrency is not None:
        raise ConfigError(
            f"--rate: got {options.rate:g} beside --concurrency {options.concurrency}, allowed: one"
            " of them, for an open or a closed loop"
        )
    if options.rate is not None and not options.rate > 0:
        raise ConfigError(f"--rate: got {options.rate:g}, allowed: more than 0, or inf")
    if options.rate == math.inf and options.num_requests is None and options.duration_s is not None:
        raise ConfigError("--rate: got inf, allowed: with --num-requests only")
    if options.dataset is None:
        _refuse(options, ("tokenizer", "as_text"), "with --dataset only")
    else:
        fields = ("prompt_tokens", "turn_tokens", "turns", "shared_prefix_tokens", "vocab_size")
        _refuse(options, fields, "without --dataset, which has prompts of its own")


def _refuse(options: ServeOptions, fields: Sequence[str], allowed: str) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(ServeOptions)}
    for field in fields:
        value = getattr(options, field)
        if value != defaults[field]:
            raise ConfigError(f"--{field.replace('_', '-')}: got {value!r}, allowed: {allowed}")


def _check_target(target: str) -> None:
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ConfigError(f"--target: got {target!r}, allowed: HOST:PORT")


def _counter(tokenizer: str | None) -> Callable[[str], int] | None:
    if tokenizer is None:
        return None
    encode = load_tokenizer(tokenizer).encode
    return lambda text: len(encode(text))


def _limited(sessions: Iterator[Session], limit: int | None) -> Iterator[Session]:
    return sessions if limit is None else take(sessions, limit)
