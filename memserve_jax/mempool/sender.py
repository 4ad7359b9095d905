"""The sender's side of transfers: reserve, gather, send, commit; or abort."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import MemServeError, StaleAddressError, TransferFailedError
from memserve_jax.core.types import BlockAddress, InstanceId, Tier, TransferId
from memserve_jax.mempool.calls import PeerCalls, error_of, started
from memserve_jax.mempool.control import ReserveAnswer, ReserveCall
from memserve_jax.mempool.gate import Gate
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.membership import Membership
from memserve_jax.mempool.memory import LocalMemory
from memserve_jax.mempool.part import NUM_SIDES, Part
from memserve_jax.mempool.remote_leases import RemoteLeases
from memserve_jax.mempool.routes import Routes
from memserve_jax.mempool.stream import Stream
from memserve_jax.mempool.transfer import Offer, Transfer, TransferPhase
from memserve_jax.mempool.transport import Destination, Payload, Transport

SENDABLE = (Tier.HBM, Tier.HOST)
Route = tuple[Transport, Destination]


@dataclass(slots=True, kw_only=True, eq=False)
class _Outgoing:
    """A transfer with what it holds until it ends."""

    transfer: Transfer
    call: ReserveCall
    lease: Lease | None = None  # None: the stream has its own
    offered: Sequence[BlockAddress] = ()
    by_cell: bool = False
    stream: Stream | None = None
    route: Route | None = None  # of a stream, once it has an answer and something to send
    num_under_way: int = 0  # parts
    moving_since_s: float = 0.0


class Sender:
    """Every transfer under way. The pool's owner makes every call."""

    def __init__(
        self,
        memory: LocalMemory,
        members: Membership,
        calls: PeerCalls,
        *,
        remote: RemoteLeases,
        routes: Routes,
        gate: Gate,
        clock: Clock,
    ):
        self._memory = memory
        self._members = members
        self._calls = calls
        self._remote = remote
        self._routes = routes
        self._gate = gate
        self._clock = clock
        self._outgoing: dict[TransferId, _Outgoing] = {}

    @property
    def num_open(self) -> int:
        """Transfers that have not ended."""
        return len(self._outgoing)

    @property
    def deadlines_s(self) -> list[float]:
        """When each of them ends at the latest."""
        return [out.transfer.deadline_s for out in self._outgoing.values()]

    def start(self, offer: Offer, lease: Lease, to: InstanceId) -> Transfer:
        """Starts a transfer. Args and errors as `MemPool.transfer`."""
        blocks = self._on_offer(offer, lease)
        out = self._begin(offer, len(blocks), to)
        out.lease, out.offered, out.by_cell = lease.share(), blocks, offer.by_cell
        return out.transfer

    def stream(self, offer: Offer, to: InstanceId) -> Stream:
        """Starts a transfer that will be fed. Args and errors as `MemPool.stream`."""
        layout = self._memory.layout
        num_blocks = layout.blocks_for(len(offer.token_ids))
        if not num_blocks:
            raise ValueError("token_ids: got none, allowed: what the blocks will hold")
        if offer.first_block:
            raise ValueError(f"first_block: got {offer.first_block}, allowed for a stream: 0")
        out = self._begin(offer, num_blocks, to)
        out.stream = Stream(
            out.transfer,
            num_blocks=num_blocks,
            num_layers=layout.num_layers,
            gather=self._memory.pages.gather,
            send=lambda part, payload: self._send_fed(out, part, payload),
            finished=lambda: self._settle(out),
        )
        return out.stream

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

    def fail_departed(self) -> None:
        """Fails transfers whose peer is known to be over."""
        for out in list(self._outgoing.values()):
            is_over = self._members.has_gone(out.transfer.to, out.call.receiver_epoch)
            if is_over and not out.transfer.is_ended:
                reason = f"{out.transfer.to} has gone"
                self._fail(out, TransferFailedError(self._text(out, reason)))

    def close(self) -> None:
        """Fails everything."""
        for out in list(self._outgoing.values()):
            self.cancel(out.transfer, f"{self._memory.instance} is closing")

    def check(self) -> None:
        """Asserts that what is kept has not ended, and that its leases hold."""
        for transfer_id, out in self._outgoing.items():
            assert out.transfer.id == transfer_id
            assert not out.transfer.is_ended, "an ended transfer was kept"
            has_lease = out.stream is not None or (out.lease is not None and out.lease.is_open)
            assert has_lease, "a transfer under way lost its lease"
        self._gate.check(set(self._outgoing))

    def _begin(self, offer: Offer, num_blocks: int, to: InstanceId) -> _Outgoing:
        call = ReserveCall(
            transfer_id=self._calls.new_id(),
            sender=self._memory.instance,
            sender_epoch=self._memory.epoch,
            receiver_epoch=self._members.epoch(to) if offer.to_epoch is None else offer.to_epoch,
            token_ids=tuple(offer.token_ids),
            salt=offer.salt,
            first_block=offer.first_block,
            num_blocks=num_blocks,
            insert=offer.insert,
            may_wait=offer.may_wait,
            private=offer.private,
            extra_blocks=offer.extra_blocks,
            into=None if offer.into is None else self._remote.use(offer.into, to, offer.tier),
            tier=offer.tier,
            timeout_s=offer.timeout_s,
        )
        deadline_s = self._clock.now_s() + offer.timeout_s
        out = _Outgoing(transfer=Transfer(call.transfer_id, to, deadline_s=deadline_s), call=call)
        self._outgoing[call.transfer_id] = out
        self._enter(out)
        return out

    def _enter(self, out: _Outgoing) -> None:
        to, call = out.transfer.to, out.call

        def ask() -> None:
            self._calls.reserve(to, call, lambda answer: self._answered(out, answer))

        if self._gate.enter(call.transfer_id, to, ask, may_wait=call.may_wait):
            return
        if call.may_wait:
            self._memory.counters.transfers_queued += 1
        else:
            busy: Future[ReserveAnswer] = Future()
            busy.set_exception(TransferFailedError("too many transfers are under way"))
            self._calls.when_done(busy, lambda answer: self._answered(out, answer))

    def _on_offer(self, offer: Offer, lease: Lease) -> Sequence[BlockAddress]:
        self._memory.book.expect_open(lease)
        num_total = self._memory.layout.blocks_for(len(offer.token_ids))
        if not num_total:
            raise ValueError("token_ids: got none, allowed: what the blocks hold")
        if num_total > len(lease):
            raise ValueError(f"lease: got {len(lease)} blocks, allowed: at least {num_total}")
        if not 0 <= offer.first_block <= num_total:
            raise ValueError(f"first_block: got {offer.first_block}, allowed: 0 to {num_total}")
        addresses = lease.blocks[offer.first_block : num_total]
        if any(address.tier not in SENDABLE for address in addresses):
            raise ValueError("a block to send is on disk: bring it to HBM or HOST first")
        return addresses

    # steps, each in the order of the table in transfer.py ---------------------------------

    def _answered(self, out: _Outgoing, answer: Future[ReserveAnswer]) -> None:
        error = error_of(answer)
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
        send = self._send if out.stream is None else self._send_stream
        send(out, answer.result())

    def _refusal(self, out: _Outgoing, answer: ReserveAnswer) -> MemServeError | None:
        """Why the transfer cannot go on after this answer."""
        wanted_epoch = out.call.receiver_epoch
        if wanted_epoch not in (None, answer.receiver_epoch):
            reason = f"wanted epoch {wanted_epoch}, it is in {answer.receiver_epoch}"
            return StaleAddressError(self._text(out, reason))
        if not answer.accepted:
            return TransferFailedError(self._text(out, f"refused: {answer.refused_because}"))
        if answer.num_held_blocks + len(answer.blocks) != out.call.num_blocks:
            reason = (
                f"offered {out.call.num_blocks} blocks, it holds {answer.num_held_blocks} "
                f"and takes {len(answer.blocks)}"
            )
            return TransferFailedError(self._text(out, reason))
        return None

    def _send(self, out: _Outgoing, answer: ReserveAnswer) -> None:
        blocks = out.offered[answer.num_held_blocks :]
        try:
            runs = [(run, self._route(out, answer, run[0].tier)) for run in _runs(blocks)]
        except TransferFailedError as error:
            self._fail(out, TransferFailedError(self._text(out, str(error))))
            return
        self._count(out, len(blocks))
        num_before = 0
        for run, route in runs:
            for part, payload in self._packed(run, num_before, by_cell=out.by_cell):
                self._send_part(out, part, payload, route)
            num_before += len(run)
        self._settle(out)

    def _packed(
        self, run: list[BlockAddress], num_before: int, *, by_cell: bool
    ) -> Iterator[tuple[Part, Payload]]:
        """Packs a run of one tier as one part, or as one part a block, layer and side."""
        layout = self._memory.layout
        if not by_cell or run[0].tier is not Tier.HBM:
            yield Part.whole(layout, len(run), num_before), self._memory.staged(run)
            return
        for row, layer, side in itertools.product(
            range(len(run)), range(layout.num_layers), range(NUM_SIDES)
        ):
            block = [run[row].block]
            cell = self._memory.pages.gather(block, first_layer=layer, num_layers=1, side=side)
            yield Part(num_before + row, 1, layer, 1, side, 1), cell

    def _send_stream(self, out: _Outgoing, answer: ReserveAnswer) -> None:
        assert out.stream is not None
        num_blocks = len(answer.blocks)
        try:
            out.route = self._route(out, answer, Tier.HBM) if num_blocks else None
        except TransferFailedError as error:
            self._fail(out, TransferFailedError(self._text(out, str(error))))
            return
        self._count(out, num_blocks)
        out.stream.answered(answer.num_held_blocks)
        self._settle(out)

    def _send_fed(self, out: _Outgoing, part: Part, payload: Payload) -> None:
        assert out.route is not None, "fed before the answer, or what the receiver holds"
        self._send_part(out, part, payload, out.route)

    def _count(self, out: _Outgoing, num_blocks: int) -> None:
        out.transfer.num_blocks = num_blocks
        out.transfer.num_bytes = num_blocks * self._memory.layout.block_bytes

    def _route(self, out: _Outgoing, answer: ReserveAnswer, source: Tier) -> Route:
        return self._routes.pick(
            out.transfer.to,
            answer.endpoints,
            source=source,
            target=out.call.tier,
            ticket=answer.ticket,
        )

    def _send_part(
        self,
        out: _Outgoing,
        part: Part,
        payload: Payload,
        route: Route,
    ) -> None:
        transport, to = route
        if out.transfer.phase is TransferPhase.RESERVED:
            out.moving_since_s = self._clock.now_s()
            out.transfer.advance(TransferPhase.MOVING)
        out.num_under_way += 1
        out.transfer.num_calls += 1
        self._memory.counters.transfer_calls += 1
        sent = started(lambda: transport.send(out.transfer.id, part, payload, to))
        self._calls.when_done(sent, lambda done: self._moved(out, done))

    def _moved(self, out: _Outgoing, sent: Future[None]) -> None:
        if out.transfer.is_ended:
            return
        error = error_of(sent)
        if error is not None:
            self._fail(out, self._wrapped(out, error))
            return
        out.num_under_way -= 1
        self._settle(out)

    def _settle(self, out: _Outgoing) -> None:
        """Commits once all there is to send has been sent and has arrived."""
        transfer, counters = out.transfer, self._memory.counters
        is_fed = out.stream is None or out.stream.is_complete
        if transfer.is_ended or out.num_under_way or not is_fed:
            return
        if transfer.phase is TransferPhase.MOVING:
            counters.blocks_sent += transfer.num_blocks
            counters.bytes_sent += transfer.num_bytes
            counters.transfer_s += self._clock.now_s() - out.moving_since_s
        self._commit(out)

    def _commit(self, out: _Outgoing) -> None:
        transfer = out.transfer
        transfer.advance(TransferPhase.COMMITTING)
        self._calls.commit(
            transfer.to,
            transfer.id,
            timeout_s=max(0.0, transfer.deadline_s - self._clock.now_s()),
            then=lambda done: self._committed(out, done),
        )

    def _committed(self, out: _Outgoing, answer: Future[None]) -> None:
        if out.transfer.is_ended:
            return
        error = error_of(answer)
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
        self._gate.leave(out.transfer.id)
        if out.lease is not None:
            out.lease.close()
        if out.stream is not None:
            out.stream.close()

    def _abort(self, out: _Outgoing, reason: str) -> None:
        self._calls.abort(out.transfer.to, out.transfer.id, reason)
        if out.call.into is not None:
            self._calls.abort(out.transfer.to, out.call.into, reason)

    def _wrapped(self, out: _Outgoing, error: BaseException) -> MemServeError:
        if isinstance(error, StaleAddressError):
            return error
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        wrapped = TransferFailedError(self._text(out, reason))
        wrapped.__cause__ = error
        return wrapped

    def _text(self, out: _Outgoing, reason: str) -> str:
        return f"transfer {out.transfer.id} to {out.transfer.to}, {out.transfer.phase}: {reason}"


def _runs(blocks: Sequence[BlockAddress]) -> list[list[BlockAddress]]:
    """Cuts blocks into runs of one tier."""
    return [list(run) for _, run in itertools.groupby(blocks, key=lambda block: block.tier)]
