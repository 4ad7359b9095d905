"""Room that a peer has, or wants, in this pool, and the table of its phases."""

import enum
from dataclasses import dataclass, field

from memserve_jax.core.types import BlockId
from memserve_jax.mempool.control import ReserveCall, RespondCommit, RespondReserve
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.pieces import Pieces


class ReservationPhase(enum.StrEnum):
    """Where a reservation is."""

    WAITING = "waiting"  # for memory
    OPEN = "open"  # blocks are leased for it; bytes are to come
    LANDED = "landed"  # all bytes are in the blocks; nobody can see them yet
    COMMITTED = "committed"
    ABORTED = "aborted"


RESERVATION_TRANSITIONS: dict[ReservationPhase, frozenset[ReservationPhase]] = {
    ReservationPhase.WAITING: frozenset({ReservationPhase.OPEN, ReservationPhase.ABORTED}),
    ReservationPhase.OPEN: frozenset({ReservationPhase.LANDED, ReservationPhase.ABORTED}),
    ReservationPhase.LANDED: frozenset({ReservationPhase.COMMITTED, ReservationPhase.ABORTED}),
    ReservationPhase.COMMITTED: frozenset(),
    ReservationPhase.ABORTED: frozenset(),
}


@dataclass(slots=True, kw_only=True, eq=False)
class Reservation:
    """Room made, or to be made, for one transfer."""

    call: ReserveCall
    respond: RespondReserve
    deadline_s: float
    phase: ReservationPhase = ReservationPhase.WAITING
    lease: Lease | None = None  # held blocks first, then those to be filled; from OPEN on
    blocks: list[BlockId] = field(default_factory=list)  # to be filled, in `call.tier`
    num_missing_cells: int = 0  # of the blocks, that have not landed
    pieces: Pieces | None = None  # of blocks for HOST that come layer by layer
    on_commit: RespondCommit | None = None  # a commit that came before the bytes

    def advance(self, phase: ReservationPhase) -> None:
        """Moves on to `phase`."""
        assert phase in RESERVATION_TRANSITIONS[self.phase], f"{self.phase} -> {phase}"
        self.phase = phase
