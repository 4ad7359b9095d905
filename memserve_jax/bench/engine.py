"""`memserve bench engine`: what the engine costs beside the device's own work.

The same jitted decode step over the same pages is driven in short turns: bare, in a loop that
knows every input beforehand and reads nothing, and by the engine, which plans, reads and reports
every token. Both turns end when the device has; the ratio of the two rates is what host work
leaves. Turns are short, and ratios are of neighbours, because machines have moods.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import jax
import numpy as np
import rich.table

from memserve_jax.core.clock import Clock, SystemClock
from memserve_jax.core.config import EngineSection
from memserve_jax.core.embedded import BENCH_SHAPE, CheckpointShape, cached_checkpoint
from memserve_jax.core.model_card import load_card
from memserve_jax.core.tokenizer import load_tokenizer
from memserve_jax.core.types import (
    CachingMode,
    InstanceId,
    Request,
    RequestId,
    Role,
    SamplingParams,
)
from memserve_jax.engine.engine import Engine
from memserve_jax.engine.events import Tokens
from memserve_jax.engine.inputs import Column, RowTable
from memserve_jax.engine.steps import Steps
from memserve_jax.mempool.pool import MemPool
from memserve_jax.model.bundle import ModelBundle
from memserve_jax.model.loader import load_model
from memserve_jax.parallel.mesh import make_mesh

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
_SETTLING_STEPS = 4  # of the engine, after its last prompt, before the clock starts

Progress = Callable[[int, int, str], None]  # done, total, what


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBenchOptions:
    """What to measure."""

    batches: tuple[int, ...] = (1, 8, 32)  # rows
    prompt_tokens: int = 128
    num_steps: int = 8  # of each turn
    num_rounds: int = 20  # a bare turn and an engine's each; medians over them
    shape: CheckpointShape = BENCH_SHAPE
    dtype: str = "float32"
    block_size_tokens: int = 16
    chunk_tokens: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """Medians over rounds, at one batch size."""

    batch: int
    engine_tokens_per_s: float
    bare_tokens_per_s: float
    ratio: float  # the median of the rounds' own ratios: noise of the machine hits both alike
    ratios: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBenchReport:
    """What was measured, and on what."""

    num_parameters: int
    dtype: str
    device: str
    prompt_tokens: int
    num_steps: int
    num_rounds: int
    batches: tuple[BatchReport, ...]

    def to_mapping(self) -> dict[str, object]:
        """Returns plain values, for JSON."""
        return asdict(self)


def run(options: EngineBenchOptions, *, progress: Progress | None = None) -> EngineBenchReport:
    """Measures each batch size in rounds of bare loop and engine, on the first device."""
    bench = _Bench(options, SystemClock())
    reports = []
    for done, batch in enumerate(options.batches):
        reports.append(bench.measure(batch))
        if progress:
            progress(done + 1, len(options.batches), f"batch {batch}")
    return EngineBenchReport(
        num_parameters=sum(weight.size for weight in bench.bundle.params.values()),
        dtype=options.dtype,
        device=jax.devices()[0].device_kind,
        prompt_tokens=options.prompt_tokens,
        num_steps=options.num_steps,
        num_rounds=options.num_rounds,
        batches=tuple(reports),
    )


def table(report: EngineBenchReport) -> rich.table.Table:
    """Returns the report as a table, a line per batch size."""
    title = (
        f"decode, {report.num_parameters / 1e6:.0f}M parameters, {report.dtype}, "
        f"{report.device}; medians of {report.num_rounds} rounds of {report.num_steps} steps"
    )
    shown = rich.table.Table(title=title)
    for heading in (
        "batch",
        "engine tok/s",
        "bare loop tok/s",
        "ratio",
        "middle half of the ratios",
    ):
        shown.add_column(heading, justify="right")
    for one in report.batches:
        shown.add_row(
            str(one.batch),
            f"{one.engine_tokens_per_s:.1f}",
            f"{one.bare_tokens_per_s:.1f}",
            f"{one.ratio:.3f}",
            " to ".join(f"{ratio:.2f}" for ratio in statistics.quantiles(one.ratios, n=4)[::2]),
        )
    return shown


class _Bench:
    """One model, one pool, one set of compiled steps; both loops over them."""

    def __init__(self, options: EngineBenchOptions, clock: Clock):
        self._options = options
        self._clock = clock
        path = cached_checkpoint(options.shape, seed=0)
        mesh = make_mesh(jax.devices()[:1], 1)
        self.bundle: ModelBundle = load_model(path, mesh=mesh, dtype=options.dtype)
        size, most_rows = options.block_size_tokens, max(options.batches)
        # Rows are prefilled one after another: the first decode that much longer.
        self._num_prefill_steps = -(-most_rows * options.prompt_tokens // options.chunk_tokens)
        self._answer_tokens = (
            options.num_rounds * options.num_steps
            + 2 * self._num_prefill_steps
            + _SETTLING_STEPS
            + 8
        )
        context = options.prompt_tokens + self._answer_tokens
        self._blocks_a_row = -(-context // size)
        self._pool = MemPool(
            instance=InstanceId("bench"),
            epoch=1,
            layout=self.bundle.config.layout(size, options.dtype),
            mesh=mesh,
            hbm_blocks=2 * most_rows * (self._blocks_a_row + 1),
            clock=clock,
        )
        self._steps = Steps(
            self.bundle, num_rows=most_rows, line_width=Column.TABLE + self._blocks_a_row
        )
        self._engine = Engine(
            instance=InstanceId("bench"),
            role=Role.COLOCATED,
            caching=CachingMode.OFF,
            config=EngineSection(
                max_context_tokens=context,
                max_running=most_rows,
                chunk_tokens=options.chunk_tokens,
            ),
            bundle=self.bundle,
            pool=self._pool,
            card=load_card(path),
            tokenizer=load_tokenizer(path),
            clock=clock,
            steps=self._steps,
        )
        self._state = self._steps.empty_state()
        self._bare_blocks = self._pool.alloc_mem(most_rows * self._blocks_a_row).block_ids

    def measure(self, batch: int) -> BatchReport:
        """Returns the rates of both loops, taken in turns while `batch` rows decode."""
        names = self._start_rows(batch)
        bare, engine = [], []
        for turn in range(self._options.num_rounds):
            bare.append(self._bare_rate(batch, turn))
            engine.append(self._engine_rate(batch))
        for name in names:
            self._engine.cancel(name)
        while self._engine.has_work:
            self._engine.step()
        ratios = tuple(with_us / alone for with_us, alone in zip(engine, bare, strict=True))
        return BatchReport(
            batch=batch,
            engine_tokens_per_s=statistics.median(engine),
            bare_tokens_per_s=statistics.median(bare),
            ratio=statistics.median(ratios),
            ratios=ratios,
        )

    def _start_rows(self, batch: int) -> list[RequestId]:
        """Brings `batch` rows to where they all decode, and both loops to where they compiled."""
        names = [RequestId(f"row{row}") for row in range(batch)]
        for row, name in enumerate(names):
            self._engine.submit(self._request(name, row))
        answering: set[RequestId] = set()
        while len(answering) < batch:
            answering |= {event.request_id for event in self._engine.step()}
        for _ in range(_SETTLING_STEPS):
            self._engine.step()
        self._bare_rate(batch, 0)
        return names

    def _bare_rate(self, batch: int, turn: int) -> float:
        """Returns tokens a second of the step alone, dispatched as fast as it can be."""
        num_steps = self._options.num_steps
        inputs = [self._lines(batch, turn * num_steps + step) for step in range(num_steps)]
        params, pages, state = self.bundle.params, self._pool.pages, self._state
        jax.block_until_ready(pages)
        start_s = self._clock.now_s()
        for lines in inputs:
            pages, state, _ = self._steps.decode(params, pages, state, lines)
        jax.block_until_ready(pages)
        seconds = self._clock.now_s() - start_s
        self._pool.pages, self._state = pages, state
        return batch * num_steps / seconds

    def _engine_rate(self, batch: int) -> float:
        """Returns tokens a second of as many steps of the engine."""
        num_tokens, num_steps = 0, self._options.num_steps
        start_s = self._clock.now_s()
        for _ in range(num_steps):
            events = self._engine.step()
            num_tokens += sum(len(event.token_ids) for event in events if isinstance(event, Tokens))
        jax.block_until_ready(self._pool.pages)  # the step dispatched last belongs to this turn
        seconds = self._clock.now_s() - start_s
        assert num_tokens == batch * num_steps, "a row ended too early"
        return num_tokens / seconds

    def _lines(self, batch: int, step: int) -> np.ndarray:
        """The input of a bare step: rows as far on as the engine's are in the same turn."""
        rows = RowTable(num_rows=self._steps.num_rows, table_width=self._blocks_a_row)
        ahead = _SETTLING_STEPS + self._num_prefill_steps // 2 + step
        position = self._options.prompt_tokens + ahead
        for row in range(batch):
            rows.open(row, GREEDY, seed=0)
            first = row * self._blocks_a_row
            rows.set_blocks(row, self._bare_blocks[first : first + self._blocks_a_row])
            rows.schedule(row, position=position, num_new=1, samples=True)
        return rows.pack_decode(range(batch), batch)

    def _request(self, name: RequestId, row: int) -> Request:
        draw = np.random.default_rng(row).integers(97, 122, self._options.prompt_tokens)
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=self._answer_tokens)
        return Request(
            request_id=name,
            session_id="",
            prompt_token_ids=tuple(draw.tolist()),
            sampling=sampling,
        )
