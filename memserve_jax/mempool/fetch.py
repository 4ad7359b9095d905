"""Fetching historical KV from a peer that holds more of a prompt (paper section 6, eq. 2).

The requester asks, the owner answers with an ordinary `transfer_with_insert` of the blocks that
the requester lacks. Nothing waits for it for ever: what has not come in time is computed.
"""

from collections.abc import Sequence
from concurrent.futures import Future

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import MemServeError, TransferFailedError
from memserve_jax.core.types import InstanceId
from memserve_jax.mempool.calls import PeerCalls, error_of
from memserve_jax.mempool.control import FetchAnswer, FetchCall
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.membership import Membership
from memserve_jax.mempool.memory import LocalMemory


class Fetch:
    """One prompt's KV on its way from a peer. The pool's owner makes every call.

    Attributes:
      owner: The peer.
      num_blocks: Blocks that came; 0 while it is under way.
      num_bytes: Their bytes.
      seconds: From the call to the visible blocks; 0.0 while it is under way.
      error: Why it failed; None otherwise.
    """

    def __init__(self, owner: InstanceId, held: Lease, *, began_s: float, deadline_s: float):
        """For `Fetcher` alone. `held`: the blocks before, which must stay meanwhile."""
        self.owner = owner
        self.num_blocks = 0
        self.num_bytes = 0
        self.seconds = 0.0
        self.error: MemServeError | None = None
        self.began_s = began_s  # on the pool's clock
        self.deadline_s = deadline_s
        self._held: Lease | None = held
        self._asked: Future[FetchAnswer] | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        return self._held is None

    def cancel(self) -> None:
        """Gives up: the owner is told, and nothing is leased for it when this returns."""
        self.end(TransferFailedError(f"the fetch from {self.owner} was given up"))

    def asked(self, answer: "Future[FetchAnswer]") -> None:
        """Takes note of the call; for the pool alone."""
        self._asked = answer

    def end(self, error: MemServeError | None) -> None:
        """Ends it, once; for the pool alone."""
        if self._held is None:
            return
        self._held.close()
        self._held = None
        self.error = error
        if self._asked is not None:
            self._asked.cancel()  # does nothing to a call that has been answered


class Fetcher:
    """Every fetch under way to this pool. Its owner makes every call."""

    def __init__(
        self, memory: LocalMemory, members: Membership, calls: PeerCalls, clock: Clock
    ) -> None:
        self._memory = memory
        self._members = members
        self._calls = calls
        self._clock = clock
        self._under_way: list[Fetch] = []

    @property
    def num_open(self) -> int:
        """Fetches that have not ended."""
        return sum(not fetch.is_done for fetch in self._under_way)

    @property
    def deadlines_s(self) -> list[float]:
        """When each of them ends at the latest."""
        return [fetch.deadline_s for fetch in self._under_way if not fetch.is_done]

    def begin(
        self,
        token_ids: Sequence[int],
        owner: InstanceId,
        *,
        salt: str,
        timeout_s: float,
    ) -> Fetch:
        """See `MemPool.fetch`."""
        size = self._memory.layout.block_size_tokens
        max_blocks = (len(token_ids) - 1) // size
        held = self._memory.match(token_ids, salt, max_blocks=max_blocks)
        now_s = self._clock.now_s()
        fetch = Fetch(owner, held, began_s=now_s, deadline_s=now_s + timeout_s)
        call = FetchCall(
            requester=self._memory.instance,
            requester_epoch=self._memory.epoch,
            owner_epoch=self._members.epoch(owner),
            token_ids=tuple(token_ids[: max_blocks * size]),
            salt=salt,
            first_block=len(held),
            timeout_s=timeout_s,
        )
        self._under_way.append(fetch)
        fetch.asked(self._calls.fetch(owner, call, lambda answer: self._answered(fetch, answer)))
        return fetch

    def expire(self) -> None:
        """Ends what is past its deadline, and forgets what has ended."""
        now_s = self._clock.now_s()
        for fetch in self._under_way:
            if now_s >= fetch.deadline_s:
                self._end(fetch, TransferFailedError(f"{fetch.owner} did not send in time"))
        self._under_way = [fetch for fetch in self._under_way if not fetch.is_done]

    def end_departed(self) -> None:
        """Ends fetches from peers that are known to be over."""
        for fetch in self._under_way:
            if self._members.has_gone(fetch.owner, None):
                self._end(fetch, TransferFailedError(f"{fetch.owner} has gone"))

    def close(self) -> None:
        """Gives everything up."""
        for fetch in self._under_way:
            fetch.cancel()
        self._under_way.clear()

    def _answered(self, fetch: Fetch, answer: "Future[FetchAnswer]") -> None:
        error = error_of(answer)
        if fetch.is_done:
            return
        if error is not None:
            wrapped = TransferFailedError(f"fetch from {fetch.owner}: {error}")
            wrapped.__cause__ = error
            self._end(fetch, wrapped)
            return
        fetch.num_blocks, fetch.num_bytes = answer.result().num_blocks, answer.result().num_bytes
        fetch.seconds = self._clock.now_s() - fetch.began_s
        self._memory.counters.blocks_fetched += fetch.num_blocks
        self._end(fetch, None)

    def _end(self, fetch: Fetch, error: MemServeError | None) -> None:
        if fetch.is_done:
            return
        if error is not None:
            self._memory.counters.fetches_failed += 1
        fetch.end(error)
