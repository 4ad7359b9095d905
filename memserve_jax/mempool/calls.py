"""A pool's calls to its peers. They never raise here, and answer on the owner's thread."""

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TypeVar

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.control import (
    FetchAnswer,
    FetchCall,
    PeerChannel,
    ReserveAnswer,
    ReserveCall,
)
from memserve_jax.mempool.inbox import Inbox

_T = TypeVar("_T")


class PeerCalls:
    """The control channel as the owner uses it: what a call answers comes by the inbox."""

    def __init__(self, instance: InstanceId, epoch: int, channel: PeerChannel | None, inbox: Inbox):
        """Without a channel every call fails."""
        self._instance = instance
        self._epoch = epoch
        self._channel = channel
        self._inbox = inbox
        self._num_started = 0

    def new_id(self) -> TransferId:
        """Returns an id that no other call of the cluster has."""
        self._num_started += 1
        return TransferId(f"{self._instance}-{self._epoch}-{self._num_started}")

    def reserve(
        self, to: InstanceId, call: ReserveCall, then: Callable[[Future[ReserveAnswer]], None]
    ) -> None:
        """Asks `to` for blocks."""
        channel = self._channel
        if channel is None:
            future: Future[ReserveAnswer] = Future()
            future.set_exception(TransferFailedError("this pool has no control channel"))
        else:
            future = started(lambda: channel.reserve(to, call, timeout_s=call.timeout_s))
        self.when_done(future, then)

    def commit(
        self,
        to: InstanceId,
        transfer_id: TransferId,
        *,
        timeout_s: float,
        then: Callable[[Future[None]], None],
    ) -> None:
        """Tells `to` that all bytes of a reservation are there."""
        channel = self._channel
        assert channel is not None, "reserved without a channel"
        answer = started(lambda: channel.commit(to, transfer_id, timeout_s=timeout_s))
        self.when_done(answer, then)

    def abort(self, to: InstanceId, transfer_id: TransferId, reason: str) -> None:
        """Gives a reservation back. A receiver that misses it frees by its own deadline."""
        channel = self._channel
        if channel is not None:
            started(lambda: channel.abort(to, transfer_id, reason))

    def fetch(
        self, owner: InstanceId, call: FetchCall, then: Callable[[Future[FetchAnswer]], None]
    ) -> Future[FetchAnswer]:
        """Asks `owner` for historical KV; cancelling the result tells it to stop."""
        channel = self._channel
        if channel is None:
            future: Future[FetchAnswer] = Future()
            future.set_exception(TransferFailedError("this pool has no control channel"))
        else:
            future = started(lambda: channel.fetch(owner, call, timeout_s=call.timeout_s))
        self.when_done(future, then)
        return future

    def when_done(self, future: Future[_T], then: Callable[[Future[_T]], None]) -> None:
        """Calls `then` on the owner's thread once the future is done."""
        future.add_done_callback(lambda done: self._inbox.post(lambda: then(done)))


def started(start: Callable[[], Future[_T]]) -> Future[_T]:
    """Returns the future of a call, failed where the call itself raised."""
    try:
        return start()
    except Exception as error:  # a peer's trouble must never be the owner's
        future: Future[_T] = Future()
        future.set_exception(error)
        return future


def error_of(future: Future[_T]) -> BaseException | None:
    """Returns why a done future failed; None where it did not."""
    return CancelledError() if future.cancelled() else future.exception()
