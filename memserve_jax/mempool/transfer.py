"""One transfer as its sender sees it, and the table of its phases."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Required, TypedDict

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import InstanceId, Tier, TransferId
from memserve_jax.mempool.remote import RemoteLease


class TransferPhase(enum.StrEnum):
    """Where a transfer is."""

    PENDING = "pending"  # the receiver has been asked for room
    RESERVED = "reserved"  # it has room; the blocks are being gathered
    MOVING = "moving"  # the bytes are on their way
    COMMITTING = "committing"  # all are there; the receiver publishes them
    DONE = "done"
    FAILED = "failed"


TRANSITIONS: dict[TransferPhase, frozenset[TransferPhase]] = {
    TransferPhase.PENDING: frozenset({TransferPhase.RESERVED, TransferPhase.FAILED}),
    # Straight to COMMITTING where the receiver holds every block on offer.
    TransferPhase.RESERVED: frozenset(
        {TransferPhase.MOVING, TransferPhase.COMMITTING, TransferPhase.FAILED}
    ),
    TransferPhase.MOVING: frozenset({TransferPhase.COMMITTING, TransferPhase.FAILED}),
    TransferPhase.COMMITTING: frozenset({TransferPhase.DONE, TransferPhase.FAILED}),
    TransferPhase.DONE: frozenset(),
    TransferPhase.FAILED: frozenset(),
}


class Terms(TypedDict, total=False):
    """How a transfer is to be made: keyword arguments of both transfer calls, with defaults."""

    salt: str  # root of the prefix; ""
    first_block: int  # index of the first block on offer: the receiver must have those before; 0
    tier: Tier  # where the blocks go over there: HBM or HOST; HBM
    into: RemoteLease | None  # HELD blocks there for those on offer, used up by this; None
    private: bytes  # carried to the receiver unread: the request it belongs to; empty
    extra_blocks: int  # blocks the receiver must be able to supply beside, for decoding; 0
    may_wait: bool  # whether the receiver may wait for memory, or refuses at once; True
    by_cell: bool  # one call a block, layer and side from HBM: 2L a block, the baseline; False
    to_epoch: int | None  # the receiver's life that is meant; None: the one last announced
    timeout_s: Required[float]  # the transfer fails, and both ends release, after this long


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a sender wants moved, and on which terms."""

    token_ids: Sequence[int]
    insert: bool
    salt: str = ""
    first_block: int = 0
    tier: Tier = Tier.HBM
    into: RemoteLease | None = None
    private: bytes = b""
    extra_blocks: int = 0
    may_wait: bool = True
    by_cell: bool = False
    to_epoch: int | None = None
    timeout_s: float


class Transfer:
    """A copy under way. Changes on the pool's thread only, inside the pool's calls.

    Attributes:
      num_blocks: Blocks sent, or being sent; 0 until the receiver has said what it lacks.
      num_bytes: Their bytes, unpadded, replicated heads counted once.
      num_calls: Calls of the transport.
      error: Why it failed; None otherwise.
    """

    def __init__(self, transfer_id: TransferId, to: InstanceId, *, deadline_s: float):
        self.id = transfer_id
        self.to = to
        self.deadline_s = deadline_s  # on the pool's clock
        self.num_blocks = 0
        self.num_bytes = 0
        self.num_calls = 0
        self.error: MemServeError | None = None
        self._phase = TransferPhase.PENDING
        self._callbacks: list[Callable[[Transfer], None]] = []

    @property
    def phase(self) -> TransferPhase:
        """Where it is."""
        return self._phase

    @property
    def is_ended(self) -> bool:
        """Whether it is DONE or FAILED: no callback or byte will follow."""
        return not TRANSITIONS[self._phase]

    def on_done(self, callback: Callable[["Transfer"], None]) -> None:
        """Calls `callback` once with this transfer when it is DONE or FAILED.

        On the pool's thread, inside `poll`, `cancel` or `peers_changed`; at once if it has
        ended already.
        """
        if self.is_ended:
            callback(self)
        else:
            self._callbacks.append(callback)

    def advance(self, phase: TransferPhase) -> None:
        """Moves on to `phase`; for the pool alone. Ending runs the callbacks."""
        assert phase in TRANSITIONS[self._phase], f"{self.id}: {self._phase} -> {phase}"
        self._phase = phase
        if self.is_ended:
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback(self)

    def fail(self, error: MemServeError) -> None:
        """Ends it with an error; for the pool alone."""
        self.error = error
        self.advance(TransferPhase.FAILED)
