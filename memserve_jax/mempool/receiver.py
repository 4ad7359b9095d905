"""The receiver's side of transfers: room for others' blocks, and their publication."""

import collections
import secrets

import numpy as np

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import MemServeError, TransferFailedError
from memserve_jax.core.types import Tier, TransferId
from memserve_jax.mempool.admission import why_never
from memserve_jax.mempool.arrival import Arrival
from memserve_jax.mempool.control import (
    ReserveAnswer,
    ReserveCall,
    RespondCommit,
    RespondReserve,
)
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.membership import Membership
from memserve_jax.mempool.memory import LocalMemory
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.pieces import Pieces
from memserve_jax.mempool.port import Port
from memserve_jax.mempool.reservation import (
    RESERVATION_TRANSITIONS,
    Reservation,
    ReservationPhase,
)
from memserve_jax.mempool.routes import Routes
from memserve_jax.mempool.transport import Payload

REMEMBERED_ENDS = 4096  # ended reservations whose late messages are still understood
TICKET_BYTES = 16


class Receiver:
    """Every reservation that peers have here. The pool's owner makes every call."""

    def __init__(
        self,
        memory: LocalMemory,
        members: Membership,
        *,
        port: Port,
        routes: Routes,
        clock: Clock,
        tensor_parallelism: int,
    ):
        self._memory = memory
        self._members = members
        self._port = port
        self._routes = routes
        self._clock = clock
        self._tensor_parallelism = tensor_parallelism
        self._reservations: dict[TransferId, Reservation] = {}
        self._waiting: collections.deque[Reservation] = collections.deque()
        self._memory_changed = False
        self._ended: collections.OrderedDict[TransferId, ReservationPhase]
        self._ended = collections.OrderedDict()
        self._arrivals: list[Arrival] = []

    @property
    def has_waiting(self) -> bool:
        """Whether a reservation waits for memory."""
        return bool(self._waiting)

    @property
    def num_open(self) -> int:
        """Reservations that have not ended."""
        return len(self._reservations)

    @property
    def deadlines_s(self) -> list[float]:
        """When each reservation ends at the latest."""
        return [reservation.deadline_s for reservation in self._reservations.values()]

    def memory_released(self) -> None:
        """Takes note that blocks may have become available; `serve` will see."""
        self._memory_changed = True

    def reserve(self, call: ReserveCall, respond: RespondReserve) -> None:
        """See `MemPool.reserve`."""
        reservation = Reservation(
            call=call, respond=respond, deadline_s=self._clock.now_s() + call.timeout_s
        )
        is_known = call.transfer_id in self._reservations or call.transfer_id in self._ended
        reason = "it was reserved or aborted before" if is_known else None
        earlier = None if call.into is None else self._reservations.get(call.into)
        reason = reason or why_never(call, self._memory, self._members, earlier)
        if reason is not None:
            self._refuse(reservation, reason)
            return
        must_queue = bool(self._waiting) and call.into is None
        if not must_queue and self._try(reservation):
            return
        if call.may_wait and call.into is None:
            self._reservations[call.transfer_id] = reservation
            self._waiting.append(reservation)
        else:
            self._refuse(reservation, f"no memory for {call.num_blocks} blocks now")

    def land(self, transfer_id: TransferId, part: Part, payload: Payload) -> None:
        """Puts bytes that have arrived into their blocks; those of ended transfers are dropped."""
        reservation = self._reservations.get(transfer_id)
        if reservation is None:
            return  # given back since
        assert reservation.phase is ReservationPhase.OPEN, "a part was admitted twice"
        memory = self._memory
        wanted = part.shape(memory.layout)
        if payload.shape[1:] != wanted[1:] or payload.shape[0] < wanted[0]:
            self._give_back(reservation, f"got packed {payload.shape}, wanted {wanted}")
            return
        self._store(reservation, part, payload)
        reservation.num_missing_cells -= part.num_cells
        if reservation.num_missing_cells:
            return
        self._store_pieces(reservation)
        memory.counters.blocks_received += len(reservation.blocks)
        memory.counters.bytes_received += self._bytes(reservation)
        reservation.advance(ReservationPhase.LANDED)
        if reservation.on_commit is not None:
            self._publish(reservation, reservation.on_commit)

    def commit(self, transfer_id: TransferId, respond: RespondCommit) -> None:
        """See `MemPool.commit`. What was delivered before must have landed; the rest comes."""
        reservation = self._reservations.get(transfer_id)
        if reservation is None:
            was_committed = self._ended.get(transfer_id) is ReservationPhase.COMMITTED
            respond(None if was_committed else self._unknown(transfer_id))
        elif reservation.phase is ReservationPhase.WAITING:
            respond(TransferFailedError(f"{transfer_id}: committed before it was reserved"))
        elif not reservation.call.token_ids:
            respond(TransferFailedError(f"{transfer_id}: blocks alone cannot be committed"))
        elif reservation.phase is ReservationPhase.LANDED:
            self._publish(reservation, respond)
        else:
            reservation.on_commit = _both(reservation.on_commit, respond)

    def abort(self, transfer_id: TransferId, reason: str) -> None:
        """See `MemPool.abort`."""
        reservation = self._reservations.get(transfer_id)
        if reservation is not None:
            self._give_back(reservation, reason)
        elif transfer_id not in self._ended:
            # The reserve may still be on its way: it must not be served any more.
            self._remember(transfer_id, ReservationPhase.ABORTED)

    def abort_departed(self) -> None:
        """Gives back what senders hold that are known to be over."""
        for reservation in list(self._reservations.values()):
            call = reservation.call
            if self._members.has_gone(call.sender, call.sender_epoch):
                self._give_back(reservation, f"{call.sender} epoch {call.sender_epoch} is over")

    def serve(self) -> None:
        """Gives memory to those who wait, first come first served, and ends what is too late."""
        now_s = self._clock.now_s()
        for reservation in list(self._reservations.values()):
            if now_s >= reservation.deadline_s:
                self._give_back(reservation, f"not committed in {reservation.call.timeout_s} s")
        while self._waiting and self._memory_changed:
            if not self._try(self._waiting[0]):
                self._memory_changed = False
                return
            self._waiting.popleft()
        self._memory_changed = False

    def take_arrivals(self) -> list[Arrival]:
        """Returns what has been committed since the last call; the caller owns the leases."""
        arrivals, self._arrivals = self._arrivals, []
        return arrivals

    def close(self) -> None:
        """Gives everything back, arrivals that nobody took included."""
        for reservation in list(self._reservations.values()):
            self._give_back(reservation, f"{self._memory.instance} is closing")
        for arrival in self.take_arrivals():
            arrival.lease.close()

    def check(self) -> None:
        """Asserts that phases, the queue and leases agree."""
        for transfer_id, reservation in self._reservations.items():
            assert reservation.call.transfer_id == transfer_id
            assert RESERVATION_TRANSITIONS[reservation.phase], "an ended reservation was kept"
            is_waiting = reservation.phase is ReservationPhase.WAITING
            assert is_waiting == (reservation in self._waiting), "the queue is wrong"
            assert is_waiting == (reservation.lease is None), "a reservation's lease is wrong"
            assert reservation.lease is None or reservation.lease.is_open
        assert all(r.call.transfer_id in self._reservations for r in self._waiting)
        num_to_come = sum(r.num_missing_cells > 0 for r in self._reservations.values())
        assert self._port.num_open >= num_to_come, "a reservation's bytes would be refused"
        assert len(self._ended) <= REMEMBERED_ENDS

    def _try(self, reservation: Reservation) -> bool:
        """Accepts or refuses a reservation for good; False where it must wait for memory."""
        call, memory = reservation.call, self._memory
        num_whole = memory.layout.whole_blocks(len(call.token_ids))
        lease = memory.match(call.token_ids, call.salt, max_blocks=num_whole)
        num_held = len(lease) - call.first_block
        if num_held < 0:
            lease.close()
            self._refuse(reservation, f"holds {len(lease)} of {call.first_block} blocks before")
            return True
        num_missing = call.num_blocks - num_held
        if not self._has_room(call, lease, num_missing):
            was_changed = self._memory_changed
            lease.close()
            self._memory_changed = was_changed
            return False
        if call.tier is Tier.HBM:
            memory.swap_in(lease)
        fresh = self._blocks_for(call, num_missing)
        reservation.blocks = [address.block for address in fresh.blocks]
        lease.absorb(fresh)
        lease.num_tokens = len(call.token_ids)
        reservation.lease = lease
        memory.counters.blocks_held += num_held
        self._accept(reservation, num_held)
        return True

    def _has_room(self, call: ReserveCall, held: Lease, num_missing: int) -> bool:
        num_hbm, num_host = call.extra_blocks, 0
        num_fresh = 0 if call.into is not None else num_missing
        if call.tier is Tier.HBM:
            num_hbm += num_fresh + sum(address.tier is not Tier.HBM for address in held.blocks)
        else:
            num_host = num_fresh
        available = self._memory.available
        return num_hbm <= available(Tier.HBM) and num_host <= available(Tier.HOST)

    def _store(self, reservation: Reservation, part: Part, payload: Payload) -> None:
        memory, tier = self._memory, reservation.call.tier
        if tier is Tier.HBM or part.is_whole(memory.layout):
            stop = part.first_block + part.num_blocks
            memory.land(tier, part, payload, reservation.blocks[part.first_block : stop])
            return
        rows = np.asarray(payload)
        if reservation.pieces is None:
            reservation.pieces = Pieces(memory.layout, len(reservation.blocks), rows.dtype)
        reservation.pieces.add(part, rows)

    def _store_pieces(self, reservation: Reservation) -> None:
        if reservation.pieces is None:
            return
        places, rows = reservation.pieces.together()
        blocks = [reservation.blocks[place] for place in places]
        whole = Part.whole(self._memory.layout, len(blocks))
        self._memory.land(reservation.call.tier, whole, rows, blocks)
        reservation.pieces = None

    def _blocks_for(self, call: ReserveCall, num_blocks: int) -> Lease:
        if call.into is None:
            return self._memory.alloc(num_blocks, call.tier)
        earlier = self._reservations[call.into]
        assert earlier.lease is not None
        fresh, earlier.lease = earlier.lease, self._memory.book.split(earlier.lease, num_blocks)
        self._give_back(earlier, f"its blocks went to {call.transfer_id}")
        return fresh

    def _accept(self, reservation: Reservation, num_held: int) -> None:
        call = reservation.call
        self._reservations[call.transfer_id] = reservation
        reservation.advance(ReservationPhase.OPEN)
        ticket = b""
        if call.token_ids and reservation.blocks:
            ticket = self._expect_bytes(reservation)
        elif call.token_ids:
            reservation.advance(ReservationPhase.LANDED)  # nothing is to come
        reservation.respond(
            ReserveAnswer(
                accepted=True,
                num_held_blocks=num_held,
                tensor_parallelism=self._tensor_parallelism,
                receiver_epoch=self._memory.epoch,
                blocks=tuple(reservation.blocks),
                endpoints=self._routes.endpoints,
                ticket=ticket,
            )
        )

    def _expect_bytes(self, reservation: Reservation) -> bytes:
        """Opens the port for a reservation's bytes; returns the ticket they come on.

        Blocks alone take bytes only by way of a transfer `into` them.
        """
        ticket = secrets.token_bytes(TICKET_BYTES)
        num_blocks = len(reservation.blocks)
        reservation.num_missing_cells = Part.whole(self._memory.layout, num_blocks).num_cells
        self._port.open(
            reservation.call.transfer_id,
            num_blocks=num_blocks,
            tier=reservation.call.tier,
            ticket=ticket,
        )
        return ticket

    def _refuse(self, reservation: Reservation, reason: str) -> None:
        self._memory.counters.reservations_refused += 1
        if self._reservations.get(reservation.call.transfer_id) is reservation:
            self._end(reservation, ReservationPhase.ABORTED)
        reservation.respond(self._refusal(reason))

    def _refusal(self, reason: str) -> ReserveAnswer:
        return ReserveAnswer(
            accepted=False,
            refused_because=reason,
            tensor_parallelism=self._tensor_parallelism,
            receiver_epoch=self._memory.epoch,
        )

    def _publish(self, reservation: Reservation, respond: RespondCommit) -> None:
        call, lease = reservation.call, reservation.lease
        assert lease is not None
        if call.insert:
            is_mixed = call.tier is Tier.HOST
            insert = self._memory.insert_behind if is_mixed else self._memory.insert
            insert(call.token_ids, lease, call.salt)
        self._end(reservation, ReservationPhase.COMMITTED)
        if call.insert and not call.private:
            lease.close()  # the index is the only one who wanted it
        else:
            self._arrivals.append(
                Arrival(
                    transfer_id=call.transfer_id,
                    sender=call.sender,
                    private=call.private,
                    lease=lease,
                    token_ids=call.token_ids,
                    num_tokens=len(call.token_ids),
                    num_blocks_moved=len(reservation.blocks),
                    num_bytes_moved=self._bytes(reservation),
                )
            )
        respond(None)

    def _give_back(self, reservation: Reservation, reason: str) -> None:
        if reservation.phase is ReservationPhase.WAITING:
            self._waiting.remove(reservation)
            self._memory_changed = True  # the next in the queue may be content with less
            self._refuse(reservation, reason)
            return
        self._end(reservation, ReservationPhase.ABORTED)
        assert reservation.lease is not None
        reservation.lease.close()
        if reservation.on_commit is not None:
            reservation.on_commit(TransferFailedError(f"{reservation.call.transfer_id}: {reason}"))

    def _end(self, reservation: Reservation, phase: ReservationPhase) -> None:
        reservation.advance(phase)
        self._port.shut(reservation.call.transfer_id)
        del self._reservations[reservation.call.transfer_id]
        self._remember(reservation.call.transfer_id, phase)

    def _remember(self, transfer_id: TransferId, phase: ReservationPhase) -> None:
        self._ended[transfer_id] = phase
        while len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)

    def _bytes(self, reservation: Reservation) -> int:
        return len(reservation.blocks) * self._memory.layout.block_bytes

    def _unknown(self, transfer_id: TransferId) -> TransferFailedError:
        return TransferFailedError(f"{transfer_id}: unknown here, or given back")


def _both(first: RespondCommit | None, second: RespondCommit) -> RespondCommit:
    """Answers two commits of the same reservation alike."""
    if first is None:
        return second

    def respond(error: MemServeError | None) -> None:
        first(error)
        second(error)

    return respond
