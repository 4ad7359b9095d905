"""KV that leaves an engine: from prefill to decode, and the decode phase's KV back."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from memserve_jax.core.types import CachingMode, InstanceId
from memserve_jax.engine.sequence import Sequence
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.pool import MemPool
from memserve_jax.mempool.transfer import Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class SendBack:
    """Decode-phase KV on its way to the prefill instance."""

    to: InstanceId
    token_ids: list[int]  # whole blocks of them
    first_block: int
    salt: str
    lease: Lease


class HandOffs:
    """Transfers an engine has begun and those it will begin when nobody waits for it.

    Send-backs are an optimisation: they start a step after the answer's last token was handed
    out, never wait for memory over there, and are dropped when memory here runs short.
    """

    def __init__(
        self, pool: MemPool, caching: CachingMode, *, block_size_tokens: int, timeout_s: float
    ):
        self._pool = pool
        self._caching = caching
        self._block_size_tokens = block_size_tokens
        self._timeout_s = timeout_s
        self._under_way: dict[Sequence, Transfer] = {}
        self._queued: deque[SendBack] = deque()
        self._num_sending_back = 0
        self.num_send_backs = 0
        self.num_dropped = 0

    @property
    def has_queued(self) -> bool:
        """Whether a send-back waits to be begun."""
        return bool(self._queued)

    @property
    def num_in_flight(self) -> int:
        """Send-backs queued or under way."""
        return len(self._queued) + self._num_sending_back

    def send(self, sequence: Sequence, done: Callable[[Sequence, Transfer], None]) -> None:
        """Begins to move a prefilled prompt's KV to the decode instance.

        Args:
          sequence: Holds the prompt's blocks; they may be released at once after this.
          done: Called when the transfer has ended, well or not.
        """
        assert sequence.peer is not None and sequence.lease is not None
        prompt = list(sequence.request.prompt_token_ids)
        move = (
            self._pool.transfer_with_insert if self._caching.decode_caches else self._pool.transfer
        )
        transfer = move(
            token_ids=prompt,
            lease=sequence.lease,
            to=sequence.peer,
            salt=sequence.request.cache_salt,
            private=sequence.request_id.encode(),
            extra_blocks=self._extra_blocks(sequence),
            timeout_s=self._timeout_s,
        )
        self._under_way[sequence] = transfer

        def ended(transfer: Transfer) -> None:
            del self._under_way[sequence]
            done(sequence, transfer)

        transfer.on_done(ended)

    def cancel(self, sequence: Sequence, reason: str) -> None:
        """Fails the transfer of `sequence`; its `done` is called before this returns."""
        self._pool.cancel(self._under_way[sequence], reason)

    def queue_send_back(self, sequence: Sequence) -> None:
        """Keeps the blocks of an answer's whole new blocks to send them back, if there are any.

        The sequence's own lease is untouched.
        """
        assert sequence.peer is not None and sequence.lease is not None
        size = self._block_size_tokens
        first_block, end_block = sequence.num_prompt // size, len(sequence.history) // size
        if not self._caching.sends_back or end_block <= first_block:
            return
        self._queued.append(
            SendBack(
                to=sequence.peer,
                token_ids=sequence.history[: end_block * size],
                first_block=first_block,
                salt=sequence.request.cache_salt,
                lease=sequence.lease.share(),
            )
        )

    def begin_queued(self) -> None:
        """Begins the send-backs that wait."""
        while self._queued:
            self._begin(self._queued.popleft())

    def drop_queued(self) -> None:
        """Gives the blocks of send-backs not begun back to the pool."""
        for send_back in self._queued:
            send_back.lease.close()
        self.num_dropped += len(self._queued)
        self._queued.clear()

    def _begin(self, send_back: SendBack) -> None:
        self._num_sending_back += 1
        transfer = self._pool.transfer_with_insert(
            send_back.token_ids,
            send_back.lease,
            send_back.to,
            salt=send_back.salt,
            first_block=send_back.first_block,
            may_wait=False,
            timeout_s=self._timeout_s,
        )
        send_back.lease.close()
        transfer.on_done(self._sent_back)

    def _sent_back(self, transfer: Transfer) -> None:
        self._num_sending_back -= 1
        if transfer.error is None:
            self.num_send_backs += 1
        else:
            self.num_dropped += 1

    def _extra_blocks(self, sequence: Sequence) -> int:
        """A block for the first tokens of the answer, where the tail block cannot take it all."""
        size = self._block_size_tokens
        prompt_blocks = -(-sequence.num_prompt // size)
        most_blocks = -(-(sequence.num_prompt + sequence.answer.max_tokens - 1) // size)
        return min(1, most_blocks - prompt_blocks)
