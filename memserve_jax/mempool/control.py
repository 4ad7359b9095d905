"""What two pools say to each other before and after bytes move. `serving` carries it by gRPC.

A sender reserves, sends the bytes by a `Transport` of its, commits; whatever goes wrong, it
aborts.
The receiver's three entry points are `MemPool.reserve`, `MemPool.commit`, `MemPool.abort`.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import BlockId, InstanceId, Tier, TransferId
from memserve_jax.mempool.transport import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveCall:
    """A sender's wish to move blocks. Mirrors `ReserveRequest` of the wire."""

    transfer_id: TransferId  # unique over the cluster: it carries sender and epoch
    sender: InstanceId
    sender_epoch: int
    receiver_epoch: int | None  # None: whichever life answers (0 on the wire)
    token_ids: tuple[int, ...]  # what the blocks hold, from position 0; empty: blocks alone
    salt: str = ""
    first_block: int = 0  # index of the first block on offer
    num_blocks: int  # on offer: those of token_ids from first_block on, the partial tail included
    insert: bool  # index the whole blocks on commit
    may_wait: bool = True  # wait for memory until the time-out, else be refused at once
    private: bytes = b""  # for the receiver's engine, unread
    extra_blocks: int = 0  # blocks that must be free or evictable beside those needed
    into: TransferId | None = None  # use the blocks of this earlier reservation of the sender's
    tier: Tier = Tier.HBM  # where the blocks go: HBM or HOST
    timeout_s: float  # from now until the commit; the receiver frees everything then


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveAnswer:
    """The receiver's yes or no. Mirrors `ReserveReply`."""

    accepted: bool
    refused_because: str = ""
    num_held_blocks: int = 0  # leading blocks on offer that need not be sent
    tensor_parallelism: int = 1
    receiver_epoch: int
    blocks: tuple[BlockId, ...] = ()  # where the other blocks go, in order
    endpoints: tuple[Endpoint, ...] = ()  # where the receiver takes their bytes
    ticket: bytes = b""  # to be shown with the bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchCall:
    """A requester's wish for historical KV. Mirrors `FetchRequest` of the wire."""

    requester: InstanceId
    requester_epoch: int
    owner_epoch: int | None  # None: whichever life answers
    token_ids: tuple[int, ...]
    salt: str = ""
    first_block: int  # the requester has those before
    timeout_s: float


@dataclass(frozen=True, slots=True)
class FetchAnswer:
    """What the owner sent; it is visible at the requester. Mirrors `FetchReply`."""

    num_blocks: int  # 0: the owner holds no more than the requester
    num_bytes: int


RespondReserve = Callable[[ReserveAnswer], None]
RespondCommit = Callable[[MemServeError | None], None]  # None: committed and visible
RespondFetch = Callable[[FetchAnswer | MemServeError], None]


@runtime_checkable
class PeerChannel(Protocol):
    """Calls to the pools of other instances. Any thread may resolve the futures.

    A future fails with a `MemServeError` when the peer is unknown, gone or too slow; every
    call ends by `timeout_s` at the latest (`abort`: in a time of the channel's choosing).
    """

    def reserve(
        self, to: InstanceId, call: ReserveCall, *, timeout_s: float
    ) -> Future[ReserveAnswer]:
        """Asks `to` for blocks. May take all of `timeout_s`, when memory is short."""
        ...

    def commit(self, to: InstanceId, transfer_id: TransferId, *, timeout_s: float) -> Future[None]:
        """Tells `to` that all bytes are there; resolves once they are visible.

        A refusal fails the future with the receiver's reason.
        """
        ...

    def abort(self, to: InstanceId, transfer_id: TransferId, reason: str) -> Future[None]:
        """Gives the reservation back. The outcome is only of statistical interest."""
        ...

    def fetch(self, owner: InstanceId, call: FetchCall, *, timeout_s: float) -> Future[FetchAnswer]:
        """Asks `owner` to send historical KV; resolves once it is visible here.

        Cancelling the future tells the owner to stop.
        """
        ...
