"""Which rows compute how many tokens in the next step, and who gives way when memory is short.

Rows that decode go first, then prompts under way, then waiting requests, each by priority and
arrival. Nobody overtakes a request that waits for memory, so nobody starves; a request whose hits
are still on their way from other tiers is passed over until they are here, for a limited time.
"""

import bisect
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from memserve_jax.engine.buckets import LEAST_CHUNK_TOKENS
from memserve_jax.engine.sequence import Phase, Sequence


@runtime_checkable
class Memory(Protocol):
    """Where sequences get their blocks."""

    def is_ready(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence may start: not while what it will find is on its way."""
        ...

    def acquire(self, sequence: Sequence) -> bool:
        """Leases what a waiting sequence needs to start; False and unchanged if too little."""
        ...

    def grow(self, sequence: Sequence) -> bool:
        """Leases a block for the next token if it needs one; False if there is none."""
        ...

    def preempt(self, sequence: Sequence) -> None:
        """Takes the sequence's blocks; what it computed may be kept as history."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row's part of a step."""

    sequence: Sequence
    num_tokens: int
    samples: bool  # it is the last before the next token can be drawn


class Batcher:
    """Rows and the queue for them.

    A step takes at most `chunk_tokens` tokens, save that it may give every row one. When more
    rows decode than a step with a prompt in it has room for, they take turns.
    """

    def __init__(self, memory: Memory, *, max_running: int, chunk_tokens: int):
        self._memory = memory
        self._chunk_tokens = chunk_tokens
        self._least_prefill_tokens = min(LEAST_CHUNK_TOKENS, -(-chunk_tokens // 2))
        self._free_rows = list(range(max_running - 1, -1, -1))
        self.running: list[Sequence] = []  # with a row, in order of turns
        self.waiting: list[Sequence] = []  # by rank

    def add(self, sequence: Sequence) -> None:
        """Queues a waiting sequence; it may hold blocks already."""
        assert sequence.phase is Phase.WAITING
        bisect.insort(self.waiting, sequence, key=lambda other: other.rank)

    def drop(self, sequence: Sequence) -> None:
        """Takes a sequence out of the queue or off its row, whichever it is in."""
        if sequence.row is None:
            self.waiting = [other for other in self.waiting if other is not sequence]
        else:
            self.running.remove(sequence)
            self._free_rows.append(sequence.row)
            sequence.row = None

    def grow(self) -> bool:
        """Finds decoding rows their next blocks, by rank; False once one goes without."""
        rows = [sequence for sequence in self.running if sequence.phase is Phase.RUNNING]
        rows.sort(key=lambda sequence: sequence.rank)
        return all(self._memory.grow(row) for row in rows if row.wants_step)

    def preempt(self) -> Sequence | None:
        """Sends the last in rank of those that hold blocks back to the queue, without them.

        Returns:
          It; None if fewer than two hold any: taking the only one's would help nobody.
        """
        holders = [sequence for sequence in self.running + self.waiting if sequence.lease]
        if len(holders) < 2:
            return None
        victim = max(holders, key=lambda sequence: sequence.rank)
        self.drop(victim)
        self._memory.preempt(victim)
        if victim.phase is not Phase.WAITING:
            victim.enter(Phase.WAITING)
        self.add(victim)
        return victim

    def plan(self) -> list[Chunk]:
        """Returns the next step, in no particular order; may give rows to waiting sequences."""
        decoding = [
            sequence
            for sequence in self.running
            if sequence.phase is Phase.RUNNING and sequence.wants_step
            if self._memory.grow(sequence)
        ]
        most_decoding = max(0, self._chunk_tokens - self._least_prefill_tokens)
        chunks = self._prefill_chunks(self._chunk_tokens - min(len(decoding), most_decoding))
        if any(chunk.num_tokens > 1 for chunk in chunks):
            room = self._chunk_tokens - sum(chunk.num_tokens for chunk in chunks)
            decoding = self._take_turns(decoding, room)
        return chunks + [Chunk(sequence, 1, True) for sequence in decoding]

    def _prefill_chunks(self, budget: int) -> list[Chunk]:
        chunks = []
        under_way = [
            sequence
            for sequence in self.running
            if sequence.phase is Phase.PREFILLING and sequence.wants_step
        ]
        for sequence in sorted(under_way, key=lambda sequence: sequence.rank):
            if not budget:
                return chunks
            chunks.append(_chunk(sequence, budget))
            budget -= chunks[-1].num_tokens
        memory_is_short = False
        for sequence in list(self.waiting):
            if not budget or not self._free_rows:
                break
            if memory_is_short and not sequence.lease:
                continue
            if not sequence.lease and not self._memory.is_ready(sequence):
                continue
            if not self._memory.acquire(sequence):
                memory_is_short = True
                continue
            self._start(sequence)
            chunks.append(_chunk(sequence, budget))
            budget -= chunks[-1].num_tokens
        return chunks

    def _start(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        sequence.row = self._free_rows.pop()
        sequence.enter(Phase.PREFILLING)
        self.running.append(sequence)

    def _take_turns(self, decoding: list[Sequence], room: int) -> list[Sequence]:
        if len(decoding) <= room:
            return decoding
        chosen = decoding[:room]
        self.running = [other for other in self.running if other not in chosen] + chosen
        return chosen

    def check(self) -> None:
        """Asserts that rows are held once and queues agree with phases."""
        rows = [sequence.row for sequence in self.running]
        assert None not in rows
        assert len(set(rows) | set(self._free_rows)) == len(rows) + len(self._free_rows)
        assert all(row.phase in (Phase.PREFILLING, Phase.RUNNING) for row in self.running)
        assert all(row.lease is not None for row in self.running)
        assert all(one.phase is Phase.WAITING and one.row is None for one in self.waiting)
        ranks = [sequence.rank for sequence in self.waiting]
        assert ranks == sorted(ranks)


def _chunk(sequence: Sequence, budget: int) -> Chunk:
    num_tokens = min(sequence.num_left, budget)
    return Chunk(sequence, num_tokens, num_tokens == sequence.num_left)
