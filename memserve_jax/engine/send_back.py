"""The decode phase's KV on its way back to the prefill instance."""

from collections import deque
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


class SendBacks:
    """Send-backs under way, and those to begin when nobody waits for the engine.

    They are an optimisation: they start a step after the answer's last token was handed out,
    never wait for memory over there, and are dropped when memory here runs short.

    Attributes:
      num_done: Of those that arrived.
      num_dropped: Of those that did not.
    """

    def __init__(self, pool: MemPool, caching: CachingMode, *, timeout_s: float):
        self._pool = pool
        self._caching = caching
        self._block_size_tokens = pool.layout.block_size_tokens
        self._timeout_s = timeout_s
        self._queued: deque[SendBack] = deque()
        self._num_under_way = 0
        self.num_done = 0
        self.num_dropped = 0

    @property
    def has_queued(self) -> bool:
        """Whether one waits to be begun."""
        return bool(self._queued)

    @property
    def num_in_flight(self) -> int:
        """Queued or under way."""
        return len(self._queued) + self._num_under_way

    def queue(self, sequence: Sequence) -> None:
        """Keeps the blocks of an answer's whole new blocks to send them back, if there are any.

        The sequence's own lease is untouched.
        """
        assert sequence.peer is not None and sequence.lease is not None
        size = self._block_size_tokens
        first_block, end_block = sequence.num_given // size, len(sequence.history) // size
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
        self._num_under_way += 1
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
        transfer.on_done(self._ended)

    def _ended(self, transfer: Transfer) -> None:
        self._num_under_way -= 1
        if transfer.error is None:
            self.num_done += 1
        else:
            self.num_dropped += 1
