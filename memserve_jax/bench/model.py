"""`memserve bench model`: a whole model's steps against what the device can do at best.

Decode reads every weight once a step: its bound is the bytes of weights and KV over the rate at
which the device reads. Prefill is arithmetic: its bound is its multiplications over the rate of
a large matrix product. Both rates are measured in every round, next to the steps and to peers.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from memserve_jax.bench.bounds import MatmulProbe, ReadProbe, seconds_of
from memserve_jax.core.clock import Clock, SystemClock
from memserve_jax.mempool.pages import make_pages
from memserve_jax.model.batch import DecodeBatch, PrefillBatch
from memserve_jax.model.bundle import ModelBundle, Params
from memserve_jax.model.config import ModelConfig
from pallas_kernels.pages import KVPages

Progress = Callable[[int, int, str], None]  # done, total, what


@runtime_checkable
class Peer(Protocol):
    """Another engine with the same model: `bench/peer_engine.py`."""

    name: str
    version: str

    def prefill_s(self, num_tokens: int) -> float:
        """Returns the seconds of one prompt."""
        ...

    def decode_s(self, batch: int, context: int, num_steps: int) -> float:
        """Returns the seconds of one greedy step, the mean of `num_steps`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBenchOptions:
    """What to measure."""

    prefills: tuple[int, ...] = (480, 992)  # tokens of one prompt
    batches: tuple[int, ...] = (1, 8)  # rows that decode
    context: int = 200  # tokens each of them attends to
    num_steps: int = 16  # decode steps a round
    num_rounds: int = 7  # medians over them
    block_size_tokens: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseReport:
    """One case: medians over rounds; ratios are medians of the rounds' own."""

    what: str  # prefill or decode
    size: int  # tokens of the prompt, or rows
    seconds: float  # of the prompt, or of a step
    tokens_per_s: float
    bound_s: float
    times_bound: float  # seconds over the bound's: 1 is perfect
    times_peer: Mapping[str, float]  # seconds over each peer's: below 1 is faster than it
    spread: float  # of the seconds: half the middle half over the median


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBenchReport:
    """What was measured, and on what."""

    shape: str
    num_parameters: int
    dtype: str
    device: str
    num_devices: int
    jax_version: str
    read_bytes_per_s: float
    flops_per_s: float
    peers: Mapping[str, str]  # name -> versions
    cases: tuple[CaseReport, ...]

    def to_mapping(self) -> dict[str, object]:
        """Returns plain values, for JSON."""
        return asdict(self)


@dataclass(slots=True, kw_only=True)
class _Case:
    what: str
    size: int
    measure_s: Callable[[], float]
    peer_s: Callable[[Peer], float]
    tokens: int
    num_bytes: int = 0  # that a step reads
    num_flops: float = 0.0
    seconds: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    peers: dict[str, list[float]] = field(default_factory=dict)


def run(
    bundle: ModelBundle,
    options: ModelBenchOptions,
    *,
    shape: str,
    peers: Sequence[Peer] = (),
    progress: Progress | None = None,
) -> ModelBenchReport:
    """Measures every case in rounds, next to the device's bounds and the peers.

    Args:
      bundle: The model; its checkpoint is the peers' too.
      options: The cases.
      shape: What to call the model.
      peers: Started already.
      progress: Told after each round.
    """
    clock = SystemClock()
    read, matmul = ReadProbe(clock), MatmulProbe(clock, bundle.dtype)
    cases = _cases(bundle, options, clock)
    for case in cases:
        case.measure_s()  # compiles
    reads, flops = [], []
    for done in range(options.num_rounds):
        reads.append(read.bytes_per_s())
        flops.append(matmul.flops_per_s())
        for case in cases:
            case.seconds.append(case.measure_s())
            case.bounds.append(_bound_s(case, reads[-1], flops[-1], bundle.mesh.size))
            for peer in peers:
                case.peers.setdefault(peer.name, []).append(case.peer_s(peer))
        if progress:
            progress(done + 1, options.num_rounds, f"round {done + 1}")
    return ModelBenchReport(
        shape=shape,
        num_parameters=sum(weight.size for weight in bundle.params.values()),
        dtype=bundle.dtype,
        device=jax.devices()[0].device_kind,
        num_devices=bundle.mesh.size,
        jax_version=jax.__version__,
        read_bytes_per_s=statistics.median(reads),
        flops_per_s=statistics.median(flops),
        peers={peer.name: peer.version for peer in peers},
        cases=tuple(_report(case) for case in cases),
    )


def _bound_s(case: _Case, bytes_per_s: float, flops_per_s: float, num_devices: int) -> float:
    bound_s = max(case.num_bytes / bytes_per_s, case.num_flops / flops_per_s)
    return bound_s / num_devices


def _report(case: _Case) -> CaseReport:
    seconds = statistics.median(case.seconds)
    low, _, high = statistics.quantiles(case.seconds, n=4)
    return CaseReport(
        what=case.what,
        size=case.size,
        seconds=seconds,
        tokens_per_s=case.tokens / seconds,
        bound_s=statistics.median(case.bounds),
        times_bound=_median_ratio(case.seconds, case.bounds),
        times_peer={name: _median_ratio(case.seconds, peer) for name, peer in case.peers.items()},
        spread=(high - low) / 2 / seconds,
    )


def _median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def _cases(bundle: ModelBundle, options: ModelBenchOptions, clock: Clock) -> list[_Case]:
    prefills = [_prefill_case(bundle, options, size, clock) for size in options.prefills]
    return prefills + [_decode_case(bundle, options, size, clock) for size in options.batches]


def _prefill_case(
    bundle: ModelBundle, options: ModelBenchOptions, num_tokens: int, clock: Clock
) -> _Case:
    pages = _Pages(bundle, options, rows=1, tokens=num_tokens)
    batch = PrefillBatch(
        token_ids=jnp.arange(num_tokens, dtype=jnp.int32) % bundle.config.vocab_size,
        positions=jnp.arange(num_tokens, dtype=jnp.int32),
        slots=jnp.asarray(pages.slots(np.arange(num_tokens))[0]),
        block_tables=jnp.asarray(pages.tables),
        query_starts=jnp.asarray([0, num_tokens], jnp.int32),
        context_lens=jnp.asarray([num_tokens], jnp.int32),
    )
    step = jax.jit(bundle.prefill, donate_argnums=1)

    def prefill() -> jax.Array:
        logits, pages.pages = step(bundle.params, pages.pages, batch)
        return logits

    return _Case(
        what="prefill",
        size=num_tokens,
        measure_s=lambda: seconds_of(prefill, clock),
        peer_s=lambda peer: peer.prefill_s(num_tokens),
        tokens=num_tokens,
        num_flops=prefill_flops(bundle.config, bundle.params, num_tokens),
        num_bytes=_read_bytes(bundle),
    )


def _decode_case(
    bundle: ModelBundle, options: ModelBenchOptions, num_rows: int, clock: Clock
) -> _Case:
    context, num_steps = options.context, options.num_steps
    pages = _Pages(bundle, options, rows=num_rows, tokens=context + num_steps)
    slots = jnp.asarray(pages.slots(np.arange(context + num_steps)))  # B U
    tables = jnp.asarray(pages.tables)

    def step(
        params: Params, kv: KVPages, tokens: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, KVPages]:
        every = jnp.full((num_rows,), position, jnp.int32)
        batch = DecodeBatch(
            token_ids=tokens,
            positions=every,
            slots=jnp.take(slots, position, axis=1),
            block_tables=tables,
            context_lens=every + 1,
        )
        logits, kv = bundle.decode(params, kv, batch)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), kv

    compiled = jax.jit(step, donate_argnums=1)

    def decode() -> jax.Array:
        tokens = jnp.zeros((num_rows,), jnp.int32)
        for index in range(num_steps):
            position = np.int32(context - 1 + index)
            tokens, pages.pages = compiled(bundle.params, pages.pages, tokens, position)
        return tokens

    layout = bundle.config.layout(options.block_size_tokens, bundle.dtype)
    kv_bytes = num_rows * context * layout.block_bytes // options.block_size_tokens
    return _Case(
        what="decode",
        size=num_rows,
        measure_s=lambda: seconds_of(decode, clock) / num_steps,
        peer_s=lambda peer: peer.decode_s(num_rows, context, num_steps),
        tokens=num_rows,
        num_bytes=_read_bytes(bundle) + kv_bytes,
        num_flops=2.0 * num_rows * _multiplied(bundle.config, bundle.params),
    )


def prefill_flops(config: ModelConfig, params: Params, num_tokens: int) -> float:
    """Returns the multiply-adds, counted twice, of one prompt: the head for its last token only."""
    head = config.vocab_size * config.embed_dim
    every_token = _multiplied(config, params) - head
    pairs = num_tokens * (num_tokens + 1) / 2  # (token, token it attends to)
    attention = 4.0 * config.num_layers * config.num_heads * config.head_dim * pairs
    return 2.0 * (num_tokens * every_token + head) + attention


def _multiplied(config: ModelConfig, params: Params) -> int:
    """Returns the weights that a token is multiplied with: all but an embedding looked up."""
    num_weights = sum(weight.size for weight in params.values())
    return num_weights - (0 if config.ties_embeddings else params["embedding"].size)


def _read_bytes(bundle: ModelBundle) -> int:
    """Returns the bytes of weights that a step reads, all devices together."""
    multiplied = _multiplied(bundle.config, bundle.params)
    return multiplied * jnp.dtype(bundle.dtype).itemsize


class _Pages:
    """KV pages for some rows, and where their tokens lie."""

    def __init__(self, bundle: ModelBundle, options: ModelBenchOptions, *, rows: int, tokens: int):
        size = options.block_size_tokens
        self._size = size
        width = -(-tokens // size)
        self.tables = np.arange(rows * width, dtype=np.int32).reshape(rows, width)
        layout = bundle.config.layout(size, bundle.dtype)
        self.pages = make_pages(layout, bundle.mesh, rows * width)

    def slots(self, positions: np.ndarray) -> np.ndarray:
        """Returns the slot of each position in each row: i32 [rows, positions]."""
        return self.tables[:, positions // self._size] * self._size + positions % self._size
