"""The elastic memory pool of one instance: the nine calls of MemServe, Table 1.

The pool owns the KV bytes of its instance in two tiers, HBM and host memory, and an index
from token prefixes to the blocks that hold their KV. Blocks are leased: what a call returns
stays put until its lease is closed, and only unleased blocks are evicted. KV that is leased
but not indexed is *active*, KV that is indexed is *historical*.
"""

from collections.abc import Callable, Mapping, Sequence

from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Shaped

from memserve_jax.core.clock import Clock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId, Tier, TransferId
from memserve_jax.mempool.arrival import Arrival
from memserve_jax.mempool.control import (
    PeerChannel,
    ReserveCall,
    RespondCommit,
    RespondReserve,
)
from memserve_jax.mempool.counters import PoolCounters, PoolStatus
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.transfer import Transfer
from memserve_jax.mempool.transport import Transport
from pallas_kernels.backend import Backend
from pallas_kernels.pages import KVPages


class MemPool:
    """Single-threaded: the instance loop makes every call but `deliver`. Nothing blocks.

    Attributes:
      pages: The KV pages. A step that donates them binds its result here before any other call.
      wake: Called from any thread when `poll` would have something to do.
      packed_sharding: How packed blocks must lie on this pool's mesh when they are delivered.
    """

    pages: KVPages
    wake: Callable[[], None]
    packed_sharding: NamedSharding

    def __init__(
        self,
        *,
        instance: InstanceId,
        epoch: int,
        layout: KVLayout,
        mesh: Mesh,
        hbm_blocks: int,
        host_blocks: int = 0,
        channel: PeerChannel | None = None,
        transport: Transport | None = None,
        clock: Clock,
        kernels: Backend | None = None,
    ): ...

    # memory -----------------------------------------------------------------------------

    def alloc_mem(self, num_blocks: int, tier: Tier = Tier.HBM) -> Lease:
        """Leases `num_blocks` blocks of undefined contents.

        Evicts historical KV if it must. All blocks or none.

        Raises:
          OutOfBlocksError: too few even with every unleased block evicted; nothing changed.
        """
        ...

    def free_mem(self, lease: Lease) -> None:
        """Closes the lease. Blocks the index does not hold become free at once."""
        ...

    def swap_out(self, num_blocks: int) -> int:
        """Moves the `num_blocks` least recently used unleased historical blocks HBM -> HOST.

        Returns:
          Blocks moved; fewer where there are not as many, or HOST has no room.
        """
        ...

    def swap_in(self, lease: Lease) -> int:
        """Brings a lease's HOST blocks to HBM; the lease's addresses change with them.

        Returns:
          Blocks that were in HOST.

        Raises:
          OutOfBlocksError: HBM cannot take them; nothing changed.
        """
        ...

    # index ------------------------------------------------------------------------------

    def insert(self, token_ids: Sequence[int], lease: Lease, *, salt: str = "") -> int:
        """Makes active KV historical: later prompts can find it. Whole blocks only.

        Block i of the lease holds tokens i*S to (i+1)*S - 1 of `token_ids`; a partial tail is
        not indexed. Where the index holds a position already it keeps its own block, and the
        lease's stays private to the lease. May be repeated as the sequence grows.

        Returns:
          Tokens newly indexed.

        Raises:
          ValueError: the lease has fewer blocks than the tokens fill, is closed, or holds HOST
            blocks beside HBM ones; nothing changed.
        """
        ...

    def match(self, token_ids: Sequence[int], *, salt: str = "") -> Lease:
        """Leases the longest held prefix of `token_ids`, on whichever tiers it lies.

        At most floor((len(token_ids) - 1) / S) blocks: the last token must be computed to have
        logits. HOST blocks must be swapped in before use. An empty lease is a miss.
        """
        ...

    def match_whole(self, token_ids: Sequence[int], *, salt: str = "") -> Lease:
        """Leases the longest held prefix, up to all whole blocks: for receivers of KV."""
        ...

    def peek(self, token_ids: Sequence[int], *, salt: str = "") -> int:
        """Returns the tokens `match` would find, without leasing or touching anything."""
        ...

    def delete(self, token_ids: Sequence[int], *, salt: str = "") -> int:
        """Forgets the KV that only this prompt and its continuations use.

        Everything at and below the last whole block goes, and above it what has no other
        continuation. Leased blocks leave the index at once and are freed with their lease.

        Returns:
          Blocks that left the index.
        """
        ...

    # transfer ---------------------------------------------------------------------------

    def transfer(
        self,
        lease: Lease,
        to: InstanceId,
        *,
        token_ids: Sequence[int],
        salt: str = "",
        first_block: int = 0,
        private: bytes = b"",
        extra_blocks: int = 0,
        may_wait: bool = True,
        to_epoch: int | None = None,
        timeout_s: float,
    ) -> Transfer:
        """Copies the KV of `token_ids` to a peer, leased there and not indexed.

        Blocks the receiver holds under `token_ids` and `salt` are not sent. The pool takes its
        own share of the lease until the transfer ends: the caller may close its own at once.

        Args:
          lease: Blocks of all of `token_ids` from position 0, all in HBM.
          to: The receiving instance.
          token_ids: What the blocks hold; the partial tail block travels too.
          salt: Root of the prefix.
          first_block: Index of the first block on offer: the receiver must hold those before
            it, or it refuses.
          private: Carried to the receiver unread (the request it belongs to).
          extra_blocks: Blocks the receiver must have beside, for decoding.
          may_wait: Whether the receiver may wait for memory; else it refuses at once.
          to_epoch: The life of `to` that is meant; None: what `peers_changed` last said.
          timeout_s: The transfer fails, and both ends release, when this has passed.

        Returns:
          The transfer under way. It never raises later: look at its `error`.

        Raises:
          ValueError: the lease is closed, too short, or has HOST blocks.
        """
        ...

    def transfer_with_insert(
        self,
        token_ids: Sequence[int],
        lease: Lease,
        to: InstanceId,
        *,
        salt: str = "",
        first_block: int = 0,
        private: bytes = b"",
        extra_blocks: int = 0,
        may_wait: bool = True,
        to_epoch: int | None = None,
        timeout_s: float,
    ) -> Transfer:
        """`transfer`, then `insert` over there, in one round trip. Args as `transfer`.

        With an empty `private` nobody is waiting for the KV over there: the receiver's lease
        is closed after the insert, and its `poll` reports no arrival (the send-back).
        """
        ...

    def cancel(self, transfer: Transfer, reason: str) -> None:
        """Fails a transfer that has not ended; both ends release. An ended one stays as it is."""
        ...

    def poll(self) -> list[Arrival]:
        """Moves transfers on; the owner calls it every iteration of its loop.

        Scatters what has arrived, serves waiting reservations, runs `on_done` callbacks, and
        ends what is past its deadline.

        Returns:
          KV that has become usable here since the last call. The caller owns the leases.
        """
        ...

    @property
    def next_deadline_s(self) -> float | None:
        """When `poll` must be called at the latest, on the pool's clock; None: no wait is on."""
        ...

    # receiver side: what `serving` calls for a peer, on the owner's thread ---------------

    def reserve(self, call: ReserveCall, respond: RespondReserve) -> None:
        """Finds room for a sender's blocks. `respond` is called once, now or in a later `poll`."""
        ...

    def commit(self, transfer_id: TransferId, respond: RespondCommit) -> None:
        """Publishes a reservation whose bytes are here.

        `respond` gets None once the blocks are visible, else the error; called once, now or in
        a later `poll`. A repeated commit gets the first one's answer.
        """
        ...

    def abort(self, transfer_id: TransferId, reason: str) -> None:
        """Gives a reservation back. One that is unknown, committed or aborted is left alone."""
        ...

    def deliver(self, transfer_id: TransferId, packed: Shaped[Array, "n L 2 K S H"]) -> None:
        """Hands in bytes that have arrived, complete and laid out as `packed_sharding`.

        Any thread may call it. Rows past the reservation's blocks are padding.
        """
        ...

    # life -------------------------------------------------------------------------------

    def peers_changed(self, live: Mapping[InstanceId, int]) -> None:
        """Takes note of which instances live, and in which epoch.

        Frees what peers that have gone, or older lives of theirs, hold here, and fails
        transfers to them. A peer never seen alive is left to its deadlines.
        """
        ...

    def warm_up(
        self, max_blocks: int, progress: Callable[[int, int, str], None] | None = None
    ) -> None:
        """Compiles the copies of up to `max_blocks` blocks. `progress(done, total, what)`."""
        ...

    def close(self) -> None:
        """Fails what is under way and drops pages and host memory. No call may follow."""
        ...

    @property
    def num_leased(self) -> int:
        """Blocks under a lease, in all tiers; reservations and transfers included."""
        ...

    @property
    def num_available(self) -> int:
        """HBM blocks that `alloc_mem` could supply: free ones and those it may evict."""
        ...

    @property
    def num_free(self) -> int:
        """HBM blocks free without evicting."""
        ...

    @property
    def num_hbm_blocks(self) -> int:
        """M, all blocks in HBM."""
        ...

    @property
    def counters(self) -> PoolCounters:
        """Running totals since the start."""
        ...

    @property
    def status(self) -> PoolStatus:
        """Occupancy of each tier."""
        ...

    def check(self) -> None:
        """Asserts every invariant: of allocators, index, leases and reservations."""
        ...
