"""Steps on their way: dispatched ahead, read one behind.

The next step is dispatched before the tokens of the last one are read: a row's last token is its
next input without leaving the device, and how far each row is, the host can count. Only where a
row ends unforeseen (EOS, a stop string) is one token computed for nothing, and ignored.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Array

from memserve_jax.core.clock import Clock
from memserve_jax.engine.batcher import Chunk
from memserve_jax.engine.counters import PrefillRate
from memserve_jax.engine.events import TopLogprobs
from memserve_jax.engine.forecast import Forecast
from memserve_jax.engine.inputs import FROM_DEVICE, RowTable
from memserve_jax.engine.result_lines import StepResult
from memserve_jax.engine.runner import AfterGroup, Runner
from memserve_jax.engine.sequence import Duty, Phase, Sequence
from memserve_jax.mempool.lease import Lease


@dataclass(frozen=True, slots=True)
class NewToken:
    """What a step sampled for one sequence."""

    sequence: Sequence
    token_id: int
    logprob: float | None  # where the request asked
    top_logprobs: TopLogprobs | None


@dataclass(frozen=True, slots=True)
class Dispatched:
    """A step the device has and the host has not read."""

    chunks: list[Chunk]
    lines: list[int]  # of the result, one a chunk
    result: Array
    num_prompt_tokens: int
    predicted_s: float  # where it computes prompts, else 0
    since_s: float
    num_compiled: int  # shapes compiled before it


@runtime_checkable
class Watcher(Protocol):
    """Who wants to know how far a step is."""

    def after_group(self, chunks: Iterable[Chunk]) -> AfterGroup | None:
        """Returns what to call after each group of layers of the step of these chunks."""
        ...

    def await_answers(self, is_ready: Callable[[], bool]) -> None:
        """Called before a step's result is waited for: returns soon after it is ready."""
        ...


class Pipeline:
    """Turns planned chunks into steps and steps into tokens; keeps the sequences' counts."""

    def __init__(
        self,
        runner: Runner,
        rows: RowTable,
        clock: Clock,
        watcher: Watcher,
        forecast: Forecast | None = None,
    ):
        self._forecast = forecast or Forecast()
        self._runner = runner
        self._watcher = watcher
        self._rows = rows
        self._clock = clock
        self._leases: list[Lease | None] = [None] * rows.num_rows  # whose blocks a line names
        self._num_written = [0] * rows.num_rows  # how many of them
        self._unread: Dispatched | None = None
        self._read_s = 0.0
        self.num_prompt_tokens = 0  # computed so far
        self.prefill_rate = PrefillRate()

    @property
    def is_empty(self) -> bool:
        """Whether every step has been read."""
        return self._unread is None

    def exchange(self, chunks: list[Chunk]) -> list[NewToken]:
        """Dispatches `chunks` as the next step, then reads the one before it."""
        dispatched = self._dispatch(chunks) if chunks else None
        tokens = self.drain()
        self._unread = dispatched
        return tokens

    def drain(self) -> list[NewToken]:
        """Reads the step under way, if there is one. Tokens of finished sequences are left out."""
        if self._unread is None:
            return []
        step, self._unread = self._unread, None
        self._watcher.await_answers(_readiness(step.result))
        result = self._runner.read(step.result)
        now_s = self._clock.now_s()
        if step.num_prompt_tokens:
            seconds = now_s - max(step.since_s, self._read_s)
            self._forecast.stepped(step.predicted_s, seconds)
            if step.num_compiled == self._runner.num_compiled:  # else it tells nothing
                self.prefill_rate.add(step.num_prompt_tokens, seconds)
                self._forecast.measured(self.prefill_rate.tokens_per_s)
        self._read_s = now_s
        tokens = []
        for chunk, line in zip(step.chunks, step.lines, strict=True):
            sequence = chunk.sequence
            if chunk.samples and sequence.phase is not Phase.FINISHED:
                sequence.num_unread -= 1
                tokens.append(_new_token(sequence, result, line))
        return tokens

    def _dispatch(self, chunks: list[Chunk]) -> Dispatched:
        now_s, num_compiled = self._clock.now_s(), self._runner.num_compiled
        chunks.sort(key=_row)
        rows = [_row(chunk) for chunk in chunks]
        num_prompt_tokens = 0
        for chunk, row in zip(chunks, rows, strict=True):
            self._write(chunk, row)
            sequence = chunk.sequence
            if sequence.phase is Phase.PREFILLING:
                if sequence.queue_s is None:
                    sequence.queue_s = now_s - sequence.arrival_s
                left = sequence.num_given - sequence.num_computed
                num_prompt_tokens += max(0, min(left, chunk.num_tokens))
        self.num_prompt_tokens += num_prompt_tokens
        predicted_s = self._predicted_s(chunks) if num_prompt_tokens else 0.0
        if self._runner.decodes and all(chunk.num_tokens == 1 for chunk in chunks):
            lines, result = list(range(len(rows))), self._runner.dispatch_decode(rows)
        else:
            tokens = [_new_token_ids(chunk) for chunk in chunks]
            num_tokens = sum(chunk.num_tokens for chunk in chunks)
            after_group = self._watcher.after_group(chunks)
            lines = rows
            result = self._runner.dispatch_mixed(rows, tokens, num_tokens, after_group)
        for chunk in chunks:
            _advance(chunk)
        return Dispatched(
            chunks, lines, result, num_prompt_tokens, predicted_s, now_s, num_compiled
        )

    def _predicted_s(self, chunks: list[Chunk]) -> float:
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        return self._forecast.step_s(
            num_tokens, [(chunk.num_tokens, chunk.sequence.num_computed) for chunk in chunks]
        )

    def _write(self, chunk: Chunk, row: int) -> None:
        sequence = chunk.sequence
        lease = sequence.lease
        assert lease is not None
        if self._leases[row] is not lease:
            self._open(sequence, lease, row)
        if self._num_written[row] < sequence.num_blocks:
            first = self._num_written[row]
            self._rows.set_blocks(row, lease.block_ids[first:], first=first)
            self._num_written[row] = sequence.num_blocks
        token = FROM_DEVICE
        if sequence.phase is Phase.PREFILLING:
            token = sequence.token_ids[sequence.num_computed]
        self._rows.schedule(
            row,
            position=sequence.num_computed,
            num_new=chunk.num_tokens,
            samples=chunk.samples,
            token=token,
        )

    def _open(self, sequence: Sequence, lease: Lease, row: int) -> None:
        sampling = sequence.request.sampling
        self._rows.open(row, sampling, sequence.seed)
        self._leases[row] = lease
        self._num_written[row] = 0
        if sampling.has_penalties:
            answer = sequence.token_ids[sequence.num_prompt :]
            self._runner.set_history(row, sequence.request.prompt_token_ids, answer)


def _row(chunk: Chunk) -> int:
    row = chunk.sequence.row
    assert row is not None
    return row


def _new_token_ids(chunk: Chunk) -> list[int]:
    sequence, start = chunk.sequence, chunk.sequence.num_computed
    if sequence.phase is Phase.RUNNING:
        return [FROM_DEVICE]
    return sequence.token_ids[start : start + chunk.num_tokens]


def _advance(chunk: Chunk) -> None:
    sequence = chunk.sequence
    sequence.num_computed += chunk.num_tokens
    if chunk.samples:
        sequence.num_unread += 1
        if sequence.phase is Phase.PREFILLING and sequence.duty is not Duty.PREFILL:
            sequence.enter(Phase.RUNNING)


def _new_token(sequence: Sequence, result: StepResult, line: int) -> NewToken:
    token = result.token_ids[line]
    wanted = sequence.request.sampling.logprobs
    if wanted is None:
        return NewToken(sequence, token, None, None)
    top = TopLogprobs(
        tuple(result.top_token_ids[line, :wanted].tolist()),
        tuple(result.top_logprobs[line, :wanted].tolist()),
    )
    return NewToken(sequence, token, float(result.logprobs[line]), top if wanted else None)


def _readiness(result: Array) -> Callable[[], bool]:
    return result.is_ready  # pyright: ignore[reportAttributeAccessIssue]
