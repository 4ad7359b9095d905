"""`alloc_mem` on peers: the remote leases that an instance holds or has asked for."""

from concurrent.futures import Future

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import BlockAddress, InstanceId, Tier, TransferId
from memserve_jax.mempool.calls import PeerCalls, error_of
from memserve_jax.mempool.control import ReserveAnswer, ReserveCall
from memserve_jax.mempool.membership import Membership
from memserve_jax.mempool.memory import LocalMemory
from memserve_jax.mempool.remote import RemoteLease, RemotePhase


class RemoteLeases:
    """Every remote lease that has not ended. The pool's owner makes every call."""

    def __init__(self, memory: LocalMemory, members: Membership, calls: PeerCalls, clock: Clock):
        self._memory = memory
        self._members = members
        self._calls = calls
        self._clock = clock
        self._leases: dict[TransferId, RemoteLease] = {}

    @property
    def deadlines_s(self) -> list[float]:
        """When each of them ends at the latest."""
        return [lease.deadline_s for lease in self._leases.values()]

    def __len__(self) -> int:
        """Leases that have not ended."""
        return len(self._leases)

    def alloc(self, num_blocks: int, tier: Tier, on: InstanceId, timeout_s: float) -> RemoteLease:
        """Asks a peer for blocks alone. See `MemPool.alloc_mem`."""
        lease = RemoteLease(
            self._calls.new_id(),
            on,
            num_blocks,
            tier,
            deadline_s=self._clock.now_s() + timeout_s,
            give_back=lambda lease: self._end(lease, "closed"),
        )
        self._leases[lease.id] = lease
        call = ReserveCall(
            transfer_id=lease.id,
            sender=self._memory.instance,
            sender_epoch=self._memory.epoch,
            receiver_epoch=self._members.epoch(on),
            token_ids=(),
            num_blocks=num_blocks,
            insert=False,
            tier=tier,
            timeout_s=timeout_s,
        )
        self._calls.reserve(on, call, lambda answer: self._answered(lease, answer))
        return lease

    def use(self, lease: RemoteLease, to: InstanceId, tier: Tier) -> TransferId:
        """Uses a lease up for a transfer; returns the name the peer knows it by.

        Raises:
          ValueError: it is not HELD, or on another peer, or of another tier.
        """
        if lease.phase is not RemotePhase.HELD:
            raise ValueError(f"into: the remote lease is {lease.phase}, allowed: held")
        if lease.on != to:
            raise ValueError(f"into: blocks of {lease.on}, allowed: of {to}")
        if lease.tier is not tier:
            raise ValueError(f"into: blocks in {lease.tier}, allowed: in {tier}")
        del self._leases[lease.id]
        lease.advance(RemotePhase.ENDED)
        return lease.id

    def expire(self) -> None:
        """Ends what is past its deadline."""
        now_s = self._clock.now_s()
        for lease in list(self._leases.values()):
            if now_s >= lease.deadline_s and lease.phase is not RemotePhase.ENDED:
                self._end(lease, "out of time")

    def end_departed(self) -> None:
        """Ends leases whose peer is known to be over."""
        for lease in list(self._leases.values()):
            if self._members.has_gone(lease.on, lease.blocks[0].epoch if lease.blocks else None):
                self._end(lease, f"{lease.on} has gone")

    def close(self) -> None:
        """Ends them all."""
        for lease in list(self._leases.values()):
            lease.close()

    def check(self) -> None:
        """Asserts that what is kept has not ended."""
        for lease in self._leases.values():
            assert lease.phase is not RemotePhase.ENDED, "an ended remote lease was kept"

    def _answered(self, lease: RemoteLease, answer: Future[ReserveAnswer]) -> None:
        error = error_of(answer)
        if lease.phase is RemotePhase.ENDED:
            if error is None and answer.result().accepted:
                self._calls.abort(lease.on, lease.id, "given up before the answer")
            return
        if error is not None or not answer.result().accepted:
            reason = str(error) if error is not None else answer.result().refused_because
            self._end(lease, reason)
            return
        epoch = answer.result().receiver_epoch
        lease.blocks = tuple(
            BlockAddress(lease.on, epoch, lease.tier, block) for block in answer.result().blocks
        )
        lease.advance(RemotePhase.HELD)

    def _end(self, lease: RemoteLease, reason: str) -> None:
        self._leases.pop(lease.id)
        self._calls.abort(lease.on, lease.id, reason)
        if lease.phase is RemotePhase.PENDING:
            lease.error = TransferFailedError(f"{lease.num_blocks} blocks on {lease.on}: {reason}")
        lease.advance(RemotePhase.ENDED)
