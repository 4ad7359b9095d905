"""An instance with a cost model for a clock: batches, memory and queue of the real kind, no KV.

Every step computes a chunk of the waiting prompts and one token for each sequence that decodes,
as the engine's batcher does; how long it takes, the cost model says.
"""

import collections
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from memserve_jax.bench.simulated_pool import SimulatedLease, SimulatedPool
from memserve_jax.bench.timeline import Timeline
from memserve_jax.core.block_keys import BlockKeys
from memserve_jax.core.cost_model import CostModel, PrefillWork
from memserve_jax.core.types import InstanceId, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceShape:
    """What all simulated instances have in common."""

    cost: CostModel  # `fixed_s` of it per step
    block_size_tokens: int = 16
    hbm_tokens: int = 131_072
    max_running: int = 32
    chunk_tokens: int = 512


@dataclass(slots=True, kw_only=True, eq=False)
class SimulatedSequence:
    """One request at one instance."""

    salt: str
    keys: BlockKeys  # of the prompt's whole blocks
    num_tokens: int  # of the prompt
    output_tokens: int  # to decode here, at least one
    has_prompt_kv: bool = False  # came from another instance: nothing to prefill
    on_token: Callable[["SimulatedSequence"], None]  # after each of the first two tokens
    on_done: Callable[["SimulatedSequence"], BlockKeys]  # returns the history's keys
    num_cached: int = 0  # tokens of the prompt that needed no computing
    num_computed: int = 0  # tokens of the prompt that have KV
    num_output: int = 0  # tokens decoded here: 1, 2, then not counted one by one
    lease: SimulatedLease | None = None


class SimulatedInstance:
    """Computes what it is given, first come first served, on a timeline."""

    def __init__(
        self,
        instance: InstanceId,
        role: Role,
        shape: InstanceShape,
        timeline: Timeline,
        *,
        epoch: int = 1,
    ):
        self.instance = instance
        self.epoch = epoch
        self.role = role
        self.pool = SimulatedPool(shape.hbm_tokens // shape.block_size_tokens)
        self.busy_s = 0.0
        self._shape = shape
        self._timeline = timeline
        self._waiting: collections.deque[SimulatedSequence] = collections.deque()
        self._prefilling: collections.deque[SimulatedSequence] = collections.deque()
        self._second: list[SimulatedSequence] = []  # decode their second token next
        self._decoding: list[tuple[int, int, SimulatedSequence]] = []  # by the step of their end
        self._context_tokens = 0  # of those that decode
        self._num_steps = 0
        self._numbers = itertools.count()
        self._is_stepping = False

    @property
    def num_sequences(self) -> int:
        """Requests here: waiting, prefilling, decoding."""
        return len(self._waiting) + self.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that have no memory yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that have memory."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def queued(self) -> PrefillWork:
        """Prefills to be done; what is not admitted yet counts as if nothing were cached."""
        work = PrefillWork()
        for sequence in itertools.chain(self._prefilling, self._waiting):
            if not sequence.has_prompt_kv:
                work += PrefillWork.of(sequence.num_tokens, sequence.num_computed)
        return work

    def submit(self, sequence: SimulatedSequence) -> None:
        """Takes a request."""
        wanted = self._blocks_of(sequence)
        assert wanted <= self.pool.num_blocks, f"{wanted} blocks never fit"
        self._waiting.append(sequence)
        self._step()

    def receive(self, salt: str, keys: BlockKeys) -> None:
        """Takes KV that another instance sends, where there is room for it."""
        lease = self.pool.lease(salt, keys, len(keys))
        if lease is not None:
            self.pool.insert(lease, keys)
            self.pool.release(lease)

    def _step(self) -> None:
        if self._is_stepping:
            return
        self._admit()
        rows = len(self._decoding)
        chunks, pairs = self._chunks(max(0, self._shape.chunk_tokens - rows))
        tokens = rows + sum(tokens for _, tokens in chunks)
        if not tokens:
            return
        work = PrefillWork(
            prompts=1, new_tokens=tokens, token_pairs=pairs + self._context_tokens + rows
        )
        seconds = self._shape.cost.seconds(work)
        self.busy_s += seconds
        self._is_stepping = True
        self._timeline.after(seconds, lambda: self._end_step(chunks))

    def _admit(self) -> None:
        while self._waiting and self.num_running < self._shape.max_running:
            sequence = self._waiting[0]
            wanted = self._blocks_of(sequence)
            lease = self.pool.lease(sequence.salt, sequence.keys, wanted)
            if lease is None:
                return
            self._waiting.popleft()
            sequence.lease = lease
            if sequence.has_prompt_kv:
                sequence.num_computed = sequence.num_tokens
                sequence.num_output = 1  # the prefill instance sampled it
                self.pool.insert(lease, sequence.keys)
                self._decode(sequence)
                continue
            size = self._shape.block_size_tokens
            sequence.num_cached = min(lease.num_held, (sequence.num_tokens - 1) // size) * size
            sequence.num_computed = sequence.num_cached
            self._prefilling.append(sequence)

    def _chunks(self, budget: int) -> tuple[list[tuple[SimulatedSequence, int]], int]:
        """Returns which prompts get how many tokens, and the token pairs of them."""
        chunks: list[tuple[SimulatedSequence, int]] = []
        pairs = 0
        for sequence in self._prefilling:
            if not budget:
                break
            tokens = min(budget, sequence.num_tokens - sequence.num_computed)
            budget -= tokens
            done = sequence.num_computed
            pairs += PrefillWork.of(done + tokens, done).token_pairs
            chunks.append((sequence, tokens))
        return chunks, pairs

    def _end_step(self, chunks: list[tuple[SimulatedSequence, int]]) -> None:
        self._is_stepping = False
        self._num_steps += 1
        self._context_tokens += len(self._decoding)
        second, self._second = self._second, []
        for sequence in second:
            sequence.num_output = 2
            sequence.on_token(sequence)
        while self._decoding and self._decoding[0][0] <= self._num_steps:
            _, _, sequence = heapq.heappop(self._decoding)
            self._context_tokens -= sequence.num_tokens + sequence.output_tokens
            self._end(sequence)
        for sequence, tokens in chunks:
            sequence.num_computed += tokens
            if sequence.num_computed == sequence.num_tokens:
                self._prefilling.remove(sequence)
                self._first_token(sequence)
        self._step()

    def _first_token(self, sequence: SimulatedSequence) -> None:
        assert sequence.lease is not None
        self.pool.insert(sequence.lease, sequence.keys)
        sequence.num_output = 1
        sequence.on_token(sequence)
        if sequence.output_tokens == 1:
            self._end(sequence)
        else:
            self._decode(sequence)

    def _decode(self, sequence: SimulatedSequence) -> None:
        ends = self._num_steps + sequence.output_tokens - 1
        heapq.heappush(self._decoding, (ends, next(self._numbers), sequence))
        self._context_tokens += sequence.num_tokens + 1
        self._second.append(sequence)

    def _end(self, sequence: SimulatedSequence) -> None:
        assert sequence.lease is not None
        history = sequence.on_done(sequence)
        self.pool.insert(sequence.lease, history)
        self.pool.release(sequence.lease)

    def _blocks_of(self, sequence: SimulatedSequence) -> int:
        return -(-(sequence.num_tokens + sequence.output_tokens) // self._shape.block_size_tokens)
