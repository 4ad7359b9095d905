"""The sender's side of transfers: reserve, gather, send, commit; or abort."""

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TypeVar

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import MemServeError, StaleAddressError, TransferFailedError
from memserve_jax.core.types import BlockAddress, BlockId, InstanceId, Tier, TransferId
from memserve_jax.mempool.control import PeerChannel, ReserveAnswer, ReserveCall
from memserve_jax.mempool.inbox import Inbox
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.membership import Membership
from memserve_jax.mempool.memory import LocalMemory
from memserve_jax.mempool.remote import RemoteLease, RemotePhase
from memserve_jax.mempool.transfer import Offer, Transfer, TransferPhase
from memserve_jax.mempool.transport import Transport

_T = TypeVar("_T")


@dataclass(slots=True, kw_only=True, eq=False)
class _Outgoing:
    """A transfer with what it holds until it ends."""

    transfer: Transfer
    call: ReserveCall
    lease: Lease
    offered: list[BlockId]
    moving_since_s: float = 0.0


class Sender:
    """Every transfer and remote allocation under way. The pool's owner makes every call."""

    def __init__(
        self,
        memory: LocalMemory,
        members: Membership,
        *,
        channel: PeerChannel | None,
        transport: Transport | None,
        clock: Clock,
        inbox: Inbox,
    ):
        self._memory = memory
        self._members = members
        self._channel = channel
        self._transport = transport
        self._clock = clock
        self._inbox = inbox
        self._outgoing: dict[TransferId, _Outgoing] = {}
        self._remote: dict[TransferId, RemoteLease] = {}
        self._num_started = 0

    @property
    def num_open(self) -> int:
        """Transfers and remote leases that have not ended."""
        return len(self._outgoing) + len(self._remote)

    @property
    def deadlines_s(self) -> list[float]:
        """When each of them ends at the latest."""
        return [out.transfer.deadline_s for out in self._outgoing.values()] + [
            lease.deadline_s for lease in self._remote.values()
        ]

    def start(self, offer: Offer, lease: Lease, to: InstanceId) -> Transfer:
        """Starts a transfer. Args and errors as `MemPool.transfer`."""
        blocks = self._on_offer(offer, lease)
        call = ReserveCall(
            transfer_id=self._new_id(),
            sender=self._memory.instance,
            sender_epoch=self._memory.epoch,
            receiver_epoch=self._members.epoch(to) if offer.to_epoch is None else offer.to_epoch,
            token_ids=tuple(offer.token_ids),
            salt=offer.salt,
            first_block=offer.first_block,
            num_blocks=len(blocks),
            insert=offer.insert,
            may_wait=offer.may_wait,
            private=offer.private,
            extra_blocks=offer.extra_blocks,
            into=None if offer.into is None else self._use(offer.into, to),
            timeout_s=offer.timeout_s,
        )
        deadline_s = self._clock.now_s() + offer.timeout_s
        transfer = Transfer(call.transfer_id, to, deadline_s=deadline_s)
        out = _Outgoing(transfer=transfer, call=call, lease=lease.share(), offered=blocks)
        self._outgoing[transfer.id] = out
        self._ask(to, call, lambda answer: self._answered(out, answer))
        return transfer

    def alloc(self, num_blocks: int, on: InstanceId, timeout_s: float) -> RemoteLease:
        """Asks a peer for blocks alone. See `MemPool.alloc_mem`."""
        lease = RemoteLease(
            self._new_id(),
            on,
            num_blocks,
            deadline_s=self._clock.now_s() + timeout_s,
            give_back=lambda lease: self._end_remote(lease, "closed"),
        )
        self._remote[lease.id] = lease
        call = ReserveCall(
            transfer_id=lease.id,
            sender=self._memory.instance,
            sender_epoch=self._memory.epoch,
            receiver_epoch=self._members.epoch(on),
            token_ids=(),
            num_blocks=num_blocks,
            insert=False,
            timeout_s=timeout_s,
        )
        self._ask(on, call, lambda answer: self._allocated(lease, answer))
        return lease

    def cancel(self, transfer: Transfer, reason: str) -> None:
        """See `MemPool.cancel`."""
        out = self._outgoing.get(transfer.id)
        if out is not None:
            self._fail(out, TransferFailedError(self._text(out, reason)))

    def expire(self) -> None:
        """Fails what is past its deadline."""
        now_s = self._clock.now_s()
        for out in list(self._outgoing.values()):
            # A callback of one transfer may have cancelled another.
            if now_s >= out.transfer.deadline_s and not out.transfer.is_ended:
                reason = f"not done in {out.call.timeout_s} s"
                self._fail(out, TransferFailedError(self._text(out, reason)))
        for lease in list(self._remote.values()):
            if now_s >= lease.deadline_s and lease.phase is not RemotePhase.ENDED:
                self._end_remote(lease, "out of time")

    def fail_departed(self) -> None:
        """Fails transfers and remote leases whose peer is known to be over."""
        for out in list(self._outgoing.values()):
            is_over = self._members.has_gone(out.transfer.to, out.call.receiver_epoch)
            if is_over and not out.transfer.is_ended:
                reason = f"{out.transfer.to} has gone"
                self._fail(out, TransferFailedError(self._text(out, reason)))
        for lease in list(self._remote.values()):
            if self._members.has_gone(lease.on, lease.blocks[0].epoch if lease.blocks else None):
                self._end_remote(lease, f"{lease.on} has gone")

    def close(self) -> None:
        """Fails everything."""
        for out in list(self._outgoing.values()):
            self.cancel(out.transfer, f"{self._memory.instance} is closing")
        for lease in list(self._remote.values()):
            lease.close()

    def check(self) -> None:
        """Asserts that what is kept has not ended, and that its leases hold."""
        for transfer_id, out in self._outgoing.items():
            assert out.transfer.id == transfer_id
            assert not out.transfer.is_ended, "an ended transfer was kept"
            assert out.lease.is_open, "a transfer under way lost its lease"
        for lease in self._remote.values():
            assert lease.phase is not RemotePhase.ENDED, "an ended remote lease was kept"

    def _on_offer(self, offer: Offer, lease: Lease) -> list[BlockId]:
        self._memory.book.expect_open(lease)
        num_total = self._memory.layout.blocks_for(len(offer.token_ids))
        if not num_total:
            raise ValueError("token_ids: got none, allowed: what the blocks hold")
        if num_total > len(lease):
            raise ValueError(f"lease: got {len(lease)} blocks, allowed: at least {num_total}")
        if not 0 <= offer.first_block <= num_total:
            raise ValueError(f"first_block: got {offer.first_block}, allowed: 0 to {num_total}")
        addresses = lease.blocks[offer.first_block : num_total]
        if any(address.tier is not Tier.HBM for address in addresses):
            raise ValueError("a block to send is not in HBM: swap the lease in first")
        return [address.block for address in addresses]

    def _use(self, into: RemoteLease, to: InstanceId) -> TransferId:
        if into.phase is not RemotePhase.HELD:
            raise ValueError(f"into: the remote lease is {into.phase}, allowed: held")
        if into.on != to:
            raise ValueError(f"into: blocks of {into.on}, allowed: of {to}")
        del self._remote[into.id]
        into.advance(RemotePhase.ENDED)
        return into.id

    def _new_id(self) -> TransferId:
        self._num_started += 1
        return TransferId(f"{self._memory.instance}-{self._memory.epoch}-{self._num_started}")

    # steps, each in the order of the table in transfer.py ---------------------------------

    def _ask(
        self, to: InstanceId, call: ReserveCall, then: Callable[[Future[ReserveAnswer]], None]
    ) -> None:
        channel = self._channel
        if channel is None:
            future: Future[ReserveAnswer] = Future()
            future.set_exception(TransferFailedError("this pool has no control channel"))
        else:
            future = _started(lambda: channel.reserve(to, call, timeout_s=call.timeout_s))
        self._when_done(future, then)

    def _answered(self, out: _Outgoing, answer: Future[ReserveAnswer]) -> None:
        error = _error_of(answer)
        if out.transfer.is_ended:
            if error is None and answer.result().accepted:
                self._abort(out, "given up before the answer")
            return
        if error is not None:
            self._fail(out, self._wrapped(out, error))
            return
        refusal = self._refusal(out, answer.result())
        if refusal is not None:
            self._fail(out, refusal)
            return
        out.transfer.advance(TransferPhase.RESERVED)
        self._send(out, out.offered[answer.result().num_held_blocks :])

    def _refusal(self, out: _Outgoing, answer: ReserveAnswer) -> MemServeError | None:
        """Why the transfer cannot go on after this answer."""
        wanted_epoch = out.call.receiver_epoch
        if wanted_epoch not in (None, answer.receiver_epoch):
            reason = f"wanted epoch {wanted_epoch}, it is in {answer.receiver_epoch}"
            return StaleAddressError(self._text(out, reason))
        if not answer.accepted:
            return TransferFailedError(self._text(out, f"refused: {answer.refused_because}"))
        if answer.num_held_blocks + len(answer.blocks) != len(out.offered):
            reason = (
                f"offered {len(out.offered)} blocks, it holds {answer.num_held_blocks} "
                f"and takes {len(answer.blocks)}"
            )
            return TransferFailedError(self._text(out, reason))
        return None

    def _send(self, out: _Outgoing, blocks: list[BlockId]) -> None:
        if not blocks:
            self._commit(out)
            return
        transport, transfer = self._transport, out.transfer
        if transport is None:
            self._fail(out, TransferFailedError(self._text(out, "this pool has no transport")))
            return
        packed = self._memory.pages.gather(blocks)
        transfer.num_blocks = len(blocks)
        transfer.num_bytes = len(blocks) * self._memory.layout.block_bytes
        transfer.num_calls = 1
        out.moving_since_s = self._clock.now_s()
        transfer.advance(TransferPhase.MOVING)
        sent = _started(lambda: transport.send(transfer.id, packed, transfer.to, len(blocks)))
        self._when_done(sent, lambda done: self._moved(out, done))

    def _moved(self, out: _Outgoing, sent: Future[None]) -> None:
        transfer, counters = out.transfer, self._memory.counters
        if transfer.is_ended:
            return
        error = _error_of(sent)
        if error is not None:
            self._fail(out, self._wrapped(out, error))
            return
        counters.blocks_sent += transfer.num_blocks
        counters.bytes_sent += transfer.num_bytes
        counters.transfer_calls += transfer.num_calls
        counters.transfer_s += self._clock.now_s() - out.moving_since_s
        self._commit(out)

    def _commit(self, out: _Outgoing) -> None:
        channel, transfer = self._channel, out.transfer
        assert channel is not None, "reserved without a channel"
        transfer.advance(TransferPhase.COMMITTING)
        left_s = max(0.0, transfer.deadline_s - self._clock.now_s())
        answer = _started(lambda: channel.commit(transfer.to, transfer.id, timeout_s=left_s))
        self._when_done(answer, lambda done: self._committed(out, done))

    def _committed(self, out: _Outgoing, answer: Future[None]) -> None:
        if out.transfer.is_ended:
            return
        error = _error_of(answer)
        if error is not None:
            self._fail(out, self._wrapped(out, error))
            return
        self._memory.counters.transfers_done += 1
        self._release(out)
        out.transfer.advance(TransferPhase.DONE)

    def _fail(self, out: _Outgoing, error: MemServeError) -> None:
        self._memory.counters.transfers_failed += 1
        self._release(out)
        self._abort(out, str(error))
        out.transfer.fail(error)

    def _release(self, out: _Outgoing) -> None:
        del self._outgoing[out.transfer.id]
        out.lease.close()

    def _abort(self, out: _Outgoing, reason: str) -> None:
        self._abort_id(out.transfer.to, out.transfer.id, reason)
        if out.call.into is not None:
            self._abort_id(out.transfer.to, out.call.into, reason)

    def _abort_id(self, to: InstanceId, transfer_id: TransferId, reason: str) -> None:
        channel = self._channel
        if channel is not None:
            # The outcome is of no use: a receiver that misses it frees by its own deadline.
            _started(lambda: channel.abort(to, transfer_id, reason))

    def _allocated(self, lease: RemoteLease, answer: Future[ReserveAnswer]) -> None:
        error = _error_of(answer)
        if lease.phase is RemotePhase.ENDED:
            if error is None and answer.result().accepted:
                self._abort_id(lease.on, lease.id, "given up before the answer")
            return
        if error is not None or not answer.result().accepted:
            reason = str(error) if error is not None else answer.result().refused_because
            self._end_remote(lease, reason)
            return
        epoch = answer.result().receiver_epoch
        lease.blocks = tuple(
            BlockAddress(lease.on, epoch, Tier.HBM, block) for block in answer.result().blocks
        )
        lease.advance(RemotePhase.HELD)

    def _end_remote(self, lease: RemoteLease, reason: str) -> None:
        self._remote.pop(lease.id)
        self._abort_id(lease.on, lease.id, reason)
        if lease.phase is RemotePhase.PENDING:
            lease.error = TransferFailedError(f"{lease.num_blocks} blocks on {lease.on}: {reason}")
        lease.advance(RemotePhase.ENDED)

    def _when_done(self, future: Future[_T], then: Callable[[Future[_T]], None]) -> None:
        future.add_done_callback(lambda done: self._inbox.post(lambda: then(done)))

    def _wrapped(self, out: _Outgoing, error: BaseException) -> MemServeError:
        if isinstance(error, StaleAddressError):
            return error
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        wrapped = TransferFailedError(self._text(out, reason))
        wrapped.__cause__ = error
        return wrapped

    def _text(self, out: _Outgoing, reason: str) -> str:
        return f"transfer {out.transfer.id} to {out.transfer.to}, {out.transfer.phase}: {reason}"


def _started(start: Callable[[], Future[_T]]) -> Future[_T]:
    """The future of a call, failed where the call itself raised."""
    try:
        return start()
    except Exception as error:  # a peer's trouble must never be the owner's
        future: Future[_T] = Future()
        future.set_exception(error)
        return future


def _error_of(future: Future[_T]) -> BaseException | None:
    return CancelledError() if future.cancelled() else future.exception()
