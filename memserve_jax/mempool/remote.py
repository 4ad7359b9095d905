"""A lease on blocks of a peer: `alloc_mem` on another instance."""

import enum
from collections.abc import Callable
from types import TracebackType

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import BlockAddress, InstanceId, Tier, TransferId


class RemotePhase(enum.StrEnum):
    """Where a remote allocation is."""

    PENDING = "pending"  # the peer has been asked
    HELD = "held"  # the blocks are ours until the lease is closed, used, or times out there
    ENDED = "ended"  # closed, used by a transfer, refused, or lost with the peer


REMOTE_TRANSITIONS: dict[RemotePhase, frozenset[RemotePhase]] = {
    RemotePhase.PENDING: frozenset({RemotePhase.HELD, RemotePhase.ENDED}),
    RemotePhase.HELD: frozenset({RemotePhase.ENDED}),
    RemotePhase.ENDED: frozenset(),
}


class RemoteLease:
    """Blocks on a peer, asked for at once and held once it has answered.

    Changes on the pool's thread only, inside the pool's calls.

    Attributes:
      blocks: Their addresses; none unless HELD.
      error: Why the peer did not give them; None otherwise.
    """

    def __init__(
        self,
        lease_id: TransferId,
        on: InstanceId,
        num_blocks: int,
        tier: Tier,
        *,
        deadline_s: float,
        give_back: Callable[["RemoteLease"], None],
    ):
        self.id = lease_id
        self.on = on
        self.num_blocks = num_blocks
        self.tier = tier
        self.deadline_s = deadline_s  # on this pool's clock; the peer frees the blocks then
        self.blocks: tuple[BlockAddress, ...] = ()
        self.error: MemServeError | None = None
        self._phase = RemotePhase.PENDING
        self._give_back = give_back
        self._callbacks: list[Callable[[RemoteLease], None]] = []

    @property
    def phase(self) -> RemotePhase:
        """Where it is."""
        return self._phase

    def on_answer(self, callback: Callable[["RemoteLease"], None]) -> None:
        """Calls `callback` once when it is HELD or ENDED; at once if it is."""
        if self._phase is RemotePhase.PENDING:
            self._callbacks.append(callback)
        else:
            callback(self)

    def close(self) -> None:
        """Gives the blocks back to the peer; does nothing where it has ended."""
        if self._phase is not RemotePhase.ENDED:
            self._give_back(self)

    def advance(self, phase: RemotePhase) -> None:
        """Moves on to `phase`; for the pool alone."""
        assert phase in REMOTE_TRANSITIONS[self._phase], f"{self.id}: {self._phase} -> {phase}"
        self._phase = phase
        if phase is RemotePhase.ENDED:
            self.blocks = ()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def __enter__(self) -> "RemoteLease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()
