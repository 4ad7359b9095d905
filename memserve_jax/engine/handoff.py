"""A prompt's KV on its way from the instance that computes it to the one that decodes."""

from collections.abc import Callable, Iterable
from typing import TypeGuard

from memserve_jax.core.types import CachingMode, TransferMode
from memserve_jax.engine.batcher import Chunk
from memserve_jax.engine.grouped_steps import Group
from memserve_jax.engine.runner import AfterGroup
from memserve_jax.engine.sequence import Duty, Sequence
from memserve_jax.engine.transfer_mode import ModeSwitch
from memserve_jax.mempool.pool import MemPool
from memserve_jax.mempool.stream import Ready, Stream
from memserve_jax.mempool.transfer import Terms, Transfer

AHEAD_CHUNKS = 2  # steps' worth of prompts that room is asked for before they are computed
ANSWER_POLL_S = 1e-3  # how often a step under way is looked at while an answer is awaited


class HandOffs:
    """Transfers of prompts, in the mode in use.

    By layer, a stream is opened while a prompt is next in line, fed as the layers of its chunks
    are dispatched, and finished with the first token. It is only a way to be early: where it
    fails before that, or its sequence loses its blocks, the prompt leaves as a whole later.

    Attributes:
      num_aborted: Streams given up before they were finished.
    """

    def __init__(
        self,
        pool: MemPool,
        caching: CachingMode,
        switch: ModeSwitch,
        chunk_tokens: int,
        timeout_s: float,
    ):
        self._pool = pool
        self._caching = caching
        self._switch = switch
        self._ahead_tokens = AHEAD_CHUNKS * chunk_tokens
        self._timeout_s = timeout_s
        self._streams: dict[Sequence, Stream] = {}  # of prompts not computed yet
        self._under_way: dict[Sequence, Transfer] = {}  # of those that are
        self.num_aborted = 0

    # by layer ---------------------------------------------------------------------------

    def open_ahead(self, waiting: Iterable[Sequence]) -> None:
        """Asks for room for the prompts that are next in line, where they leave by layer.

        In the order in which they will be computed, and for no more than that: room over there
        that waits for a prompt here must not keep others waiting.
        """
        if self._switch.mode is not TransferMode.BY_LAYER:
            return
        num_tokens = 0
        for sequence in waiting:
            if num_tokens >= self._ahead_tokens:
                return
            num_tokens += sequence.num_left
            if sequence.duty is Duty.PREFILL and sequence not in self._streams:
                self._streams[sequence] = self._open(sequence)

    def after_group(self, chunks: Iterable[Chunk]) -> AfterGroup | None:
        """Returns what feeds the streams of a step's prompts, group by group; None: none has one.

        Args:
          chunks: Of the step about to be dispatched.
        """
        fed = [
            (stream, chunk.sequence, self._range(chunk))
            for chunk in chunks
            if _is_open(stream := self._streams.get(chunk.sequence))
        ]
        streams = [stream for stream, _, _ in fed]
        for stream in self._streams.values():
            if not stream.is_answered and stream not in streams:
                stream.unstage()  # packed KV of one step at a time may wait for an answer
        if not fed:
            return None

        def feed(group: Group) -> None:
            for stream, sequence, (num_old, num_blocks) in fed:
                assert sequence.lease is not None
                ready = Ready(
                    first_layer=group[0],
                    num_layers=group[1],
                    num_blocks=num_blocks,
                    num_old_blocks=num_old,
                )
                stream.feed(sequence.lease, ready)

        return feed

    def await_answers(self, is_ready: Callable[[], bool]) -> None:
        """Takes answers to fed streams while a step is computed; returns when either is over."""
        while any(map(_wants_answer, self._streams.values())) and not is_ready():
            self._pool.wait(ANSWER_POLL_S)

    def _open(self, sequence: Sequence) -> Stream:
        assert sequence.peer is not None
        return self._pool.stream(
            list(sequence.request.given_token_ids),
            sequence.peer,
            insert=self._caching.decode_caches,
            **self._terms(sequence),
        )

    def _range(self, chunk: Chunk) -> tuple[int, int]:
        """Blocks complete before a chunk, and after it: with the last one, the tail counts."""
        layout, start = self._pool.layout, chunk.sequence.num_computed
        stop = start + chunk.num_tokens
        if stop == chunk.sequence.num_given:
            return layout.whole_blocks(start), layout.blocks_for(stop)
        return layout.whole_blocks(start), layout.whole_blocks(stop)

    # a prompt that is computed ----------------------------------------------------------

    def send(self, sequence: Sequence, done: Callable[[Sequence, Transfer], None]) -> None:
        """Sees to it that all KV of a computed prompt gets to its decode instance.

        Args:
          sequence: Holds the prompt's blocks; they may be released at once after this.
          done: Called when the transfer has ended, well or not.
        """
        stream = self._streams.pop(sequence, None)
        is_open = _is_open(stream)
        transfer = stream.transfer if is_open else self._begin(sequence)
        self._under_way[sequence] = transfer

        def ended(transfer: Transfer) -> None:
            del self._under_way[sequence]
            done(sequence, transfer)

        transfer.on_done(ended)
        if is_open:
            stream.finish()

    def drop(self, sequence: Sequence, reason: str) -> None:
        """Fails what is under way for a sequence; a `done` is called before this returns."""
        stream = self._streams.pop(sequence, None)
        if _is_open(stream):
            self.num_aborted += 1
            self._pool.cancel(stream.transfer, reason)
        elif sequence in self._under_way:
            self._pool.cancel(self._under_way[sequence], reason)

    def _begin(self, sequence: Sequence) -> Transfer:
        assert sequence.peer is not None and sequence.lease is not None
        move = (
            self._pool.transfer_with_insert if self._caching.decode_caches else self._pool.transfer
        )
        return move(
            token_ids=list(sequence.request.given_token_ids),
            lease=sequence.lease,
            to=sequence.peer,
            **self._terms(sequence),
        )

    def _terms(self, sequence: Sequence) -> Terms:
        return Terms(
            salt=sequence.request.cache_salt,
            private=sequence.request_id.encode(),
            extra_blocks=self._extra_blocks(sequence),
            by_cell=self._switch.mode is TransferMode.BY_REQUEST,
            to_epoch=sequence.peer_epoch,
            timeout_s=self._timeout_s,
        )

    def _extra_blocks(self, sequence: Sequence) -> int:
        """A block for the first tokens of the answer, where the tail block cannot take it all."""
        blocks_for = self._pool.layout.blocks_for
        most_blocks = blocks_for(sequence.num_prompt + sequence.answer.max_tokens - 1)
        return min(1, most_blocks - blocks_for(sequence.num_given))


def _is_open(stream: Stream | None) -> TypeGuard[Stream]:
    return stream is not None and not stream.transfer.is_ended


def _wants_answer(stream: Stream) -> bool:
    return stream.is_fed and not stream.is_answered and not stream.transfer.is_ended
