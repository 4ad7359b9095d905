"""The elastic memory pool of one instance: the nine calls of MemServe, Table 1.

The pool owns the KV bytes of its instance in tiers, HBM, host memory and disk, and an index
from token prefixes to the blocks that hold their KV. Blocks are leased: what a call returns
stays put until its lease is closed, and only unleased blocks are evicted. KV that is leased
but not indexed is *active*, KV that is indexed is *historical*.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Unpack, overload

from jax.sharding import Mesh

from memserve_jax.core.clock import Clock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.mempool.arrival import Arrival
from memserve_jax.mempool.control import PeerChannel
from memserve_jax.mempool.disk import DiskOptions, open_disk
from memserve_jax.mempool.exchange import Exchange
from memserve_jax.mempool.fetch import Fetch
from memserve_jax.mempool.inbox import Inbox
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.memory import LocalMemory
from memserve_jax.mempool.pool_facts import PoolFacts
from memserve_jax.mempool.pool_reception import PoolReception
from memserve_jax.mempool.prefetch import Prefetch, Prefetcher
from memserve_jax.mempool.remote import RemoteLease
from memserve_jax.mempool.sender import SENDABLE
from memserve_jax.mempool.stream import Stream
from memserve_jax.mempool.transfer import Offer, Terms, Transfer
from memserve_jax.mempool.transport import Transport
from pallas_kernels.backend import Backend
from pallas_kernels.pages import KVPages


class MemPool(PoolFacts, PoolReception):
    """Single-threaded: the instance loop makes every call but `announced`. Only `swap_in` waits.

    Attributes:
      wake: Called from any thread when `poll` would have something to do.
    """

    def __init__(
        self,
        *,
        instance: InstanceId,
        epoch: int,
        layout: KVLayout,
        mesh: Mesh,
        hbm_blocks: int,
        host_blocks: int = 0,
        disk: DiskOptions | None = None,
        max_pinned_blocks: int | None = None,
        channel: PeerChannel | None = None,
        transports: Sequence[Transport] = (),
        max_transfers: int = 64,
        clock: Clock,
        kernels: Backend | None = None,
    ):
        """Makes a pool with empty tiers of `hbm_blocks` and `host_blocks` blocks (0: no tier).

        `disk` keeps what it held. `max_pinned_blocks` None: half of HBM. Without a channel or
        `transports`, best first, transfers fail. `epoch` must be greater than in any earlier life
        of the instance. No `kernels`: copies as the platform likes.
        """
        self.wake: Callable[[], None] = lambda: None
        self._inbox = Inbox(lambda: self.wake())
        self._memory = LocalMemory(
            instance=instance,
            epoch=epoch,
            layout=layout,
            mesh=mesh,
            hbm_blocks=hbm_blocks,
            host_blocks=host_blocks,
            disk=None if disk is None else open_disk(disk, layout, self._inbox.post),
            max_pinned_blocks=hbm_blocks // 2 if max_pinned_blocks is None else max_pinned_blocks,
            kernels=kernels,
        )
        self._prefetcher = Prefetcher(self._memory, clock, self._inbox)
        self._memory.released = self._released
        self._peers = Exchange(
            self._memory,
            mesh,
            channel=channel,
            transports=transports,
            max_transfers=max_transfers,
            clock=clock,
            inbox=self._inbox,
        )

    @property
    def pages(self) -> KVPages:
        """The KV pages. A step that donates them binds its result here before any other call."""
        return self._memory.pages.pages

    @pages.setter
    def pages(self, pages: KVPages) -> None:
        self._memory.pages.pages = pages

    # memory -----------------------------------------------------------------------------

    @overload
    def alloc_mem(self, num_blocks: int, tier: Tier = Tier.HBM) -> Lease: ...

    @overload
    def alloc_mem(
        self, num_blocks: int, tier: Tier = Tier.HBM, *, on: InstanceId, timeout_s: float
    ) -> RemoteLease: ...

    def alloc_mem(
        self,
        num_blocks: int,
        tier: Tier = Tier.HBM,
        *,
        on: InstanceId | None = None,
        timeout_s: float = 0.0,
    ) -> Lease | RemoteLease:
        """Leases `num_blocks` blocks of undefined contents in `tier`, here or `on` a peer.

        Evicts historical KV if it must. All blocks or none. A peer's lease is PENDING until the
        peer has answered, which may wait for memory, and ends `timeout_s` from now.

        Raises:
          OutOfBlocksError: too few even with every unleased block evicted; nothing changed.
          ValueError: this pool, or a peer, has no such tier.
        """
        if on is None:
            return self._memory.alloc(num_blocks, tier)
        if tier not in SENDABLE:
            raise ValueError(f"tier: got {tier} on a peer, allowed: {', '.join(SENDABLE)}")
        return self._peers.remote.alloc(num_blocks, tier, on, timeout_s)

    def free_mem(self, lease: Lease) -> None:
        """Closes the lease. Blocks the index does not hold become free at once."""
        lease.close()

    def swap_out(self, num_blocks: int) -> int:
        """Moves the `num_blocks` LRU unleased historical blocks from HBM to HOST, else to DISK.

        Returns:
          Blocks moved; fewer where there are not as many, or no tier has room.
        """
        return self._memory.swap_out(num_blocks)

    def swap_in(self, lease: Lease) -> int:
        """Brings a lease's HOST and DISK blocks to HBM; its addresses change with them.

        Waits for files: who cannot does a `prefetch`, and matches without DISK. Blocks from DISK
        are the lease's own until inserted; it ends before a corrupt one. Returns their number.

        Raises:
          OutOfBlocksError: HBM cannot take them; nothing changed.
        """
        return self._memory.swap_in(lease)

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
        return self._memory.insert(token_ids, lease, salt)

    def match(self, token_ids: Sequence[int], *, salt: str = "", on_disk: bool = True) -> Lease:
        """Leases the longest held prefix of `token_ids`, on whichever tiers it lies.

        At most floor((len(token_ids) - 1) / S) blocks: the last token must be computed to have
        logits. HOST and DISK blocks must be swapped in before use. An empty lease is a miss.
        """
        max_blocks = (len(token_ids) - 1) // self.layout.block_size_tokens
        return self._memory.match(token_ids, salt, max_blocks=max_blocks, on_disk=on_disk)

    def match_whole(self, token_ids: Sequence[int], *, salt: str = "") -> Lease:
        """Leases the longest held prefix, up to all whole blocks: for receivers of KV."""
        max_blocks = self.layout.whole_blocks(len(token_ids))
        return self._memory.match(token_ids, salt, max_blocks=max_blocks, on_disk=True)

    def peek(self, token_ids: Sequence[int], *, salt: str = "") -> int:
        """Returns the tokens `match` would find, without touching anything."""
        most = (len(token_ids) - 1) // self.layout.block_size_tokens
        return self._memory.peek(token_ids, salt, max_blocks=most, on_disk=True)

    def prefetch(self, token_ids: Sequence[int], *, salt: str = "", timeout_s: float) -> Prefetch:
        """Begins to bring what `match` would find to HBM; HOST where that is short. No lease.

        What was on DISK comes with later `poll`s, until `timeout_s` from now at the latest.
        """
        return self._prefetcher.begin(token_ids, salt, timeout_s)

    def pin(self, token_ids: Sequence[int], *, salt: str = "") -> int:
        """Keeps what is held of a prefix where it is until `unpin`; returns the blocks kept.

        Raises:
          OverloadedError: more blocks would be pinned than may be; nothing changed.
        """
        return self._memory.pin(token_ids, salt)

    def unpin(self, token_ids: Sequence[int], *, salt: str = "") -> int:
        """Ends the pin on exactly this prefix; returns the blocks it kept, 0 without a pin."""
        return self._memory.unpin(token_ids, salt)

    def delete(self, token_ids: Sequence[int], *, salt: str = "") -> int:
        """Forgets the KV that only this prompt and its continuations use.

        Everything at and below the last whole block goes, and above it what has no other
        continuation. Leased blocks leave the index at once and are freed with their lease.

        Returns:
          Blocks that left the index and DISK; 0 where a pin is on the prefix or beyond.
        """
        return self._memory.delete(token_ids, salt)

    # transfer ---------------------------------------------------------------------------

    def transfer(
        self, lease: Lease, to: InstanceId, *, token_ids: Sequence[int], **terms: Unpack[Terms]
    ) -> Transfer:
        """Copies the KV of `token_ids` to a peer, leased there and not indexed.

        Blocks the receiver holds under `token_ids` are not sent. The pool takes its own share
        of the lease until the transfer ends: the caller may close its own at once.

        Args:
          lease: Blocks of all of `token_ids` from position 0; those on offer in HBM.
          to: The receiving instance.
          token_ids: What the blocks hold; the partial tail block travels too.
          terms: See `Terms`; `timeout_s` is required.

        Returns:
          The transfer under way. It never raises later: look at its `error`.

        Raises:
          ValueError: the lease is closed, too short, or has HOST blocks on offer; `first_block`
            is not in it; `into` is not HELD, or on another peer.
        """
        return self._peers.sender.start(
            Offer(token_ids=token_ids, insert=False, **terms), lease, to
        )

    def transfer_with_insert(
        self, token_ids: Sequence[int], lease: Lease, to: InstanceId, **terms: Unpack[Terms]
    ) -> Transfer:
        """`transfer`, then `insert` over there, in one round trip. Args as `transfer`.

        With an empty `private` nobody is waiting for the KV over there: the receiver's lease
        is closed after the insert, and its `poll` reports no arrival (the send-back).
        """
        return self._peers.sender.start(Offer(token_ids=token_ids, insert=True, **terms), lease, to)

    def stream(
        self, token_ids: Sequence[int], to: InstanceId, *, insert: bool, **terms: Unpack[Terms]
    ) -> Stream:
        """Starts a transfer of KV that is yet to be computed: feed it. See `Stream`.

        Args as `transfer_with_insert`, `first_block` apart: blocks are offered from 0 on.

        Raises:
          ValueError: no tokens, a `first_block`, or `into` as in `transfer`.
        """
        return self._peers.sender.stream(Offer(token_ids=token_ids, insert=insert, **terms), to)

    def cancel(self, transfer: Transfer, reason: str) -> None:
        """Fails a transfer that has not ended; both ends release. An ended one stays as it is."""
        self._peers.sender.cancel(transfer, reason)

    def fetch(
        self, token_ids: Sequence[int], owner: InstanceId, *, salt: str = "", timeout_s: float
    ) -> Fetch:
        """Asks a peer for the KV it holds of a prompt, but for its last token, beyond this pool's.

        What comes is indexed here: a later `match` finds it. `wake` is called when it is done,
        after `timeout_s` at the latest.
        """
        return self._peers.fetcher.begin(token_ids, owner, salt=salt, timeout_s=timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Moves transfers on as soon as a peer has answered, or returns after `timeout_s`."""
        self._inbox.wait(timeout_s)

    def poll(self) -> list[Arrival]:
        """Moves transfers on; the owner calls it every iteration of its loop.

        Scatters what has arrived, serves waiting reservations, runs `on_done` callbacks, and
        ends what is past its deadline.

        Returns:
          KV that has become usable here since the last call. The caller owns the leases.
        """
        if self._memory.host is not None:
            self._memory.host.settle()
        arrivals = self._peers.poll()
        self._prefetcher.expire()
        return arrivals

    @property
    def next_deadline_s(self) -> float | None:
        """When `poll` must be called at the latest, on the pool's clock; None: no wait is on."""
        deadlines_s = [self._peers.next_deadline_s, *self._prefetcher.deadlines_s]
        return min((at_s for at_s in deadlines_s if at_s is not None), default=None)

    # life -------------------------------------------------------------------------------

    def warm_up(
        self,
        max_blocks: int,
        progress: Callable[[int, int, str], None] | None = None,
        *,
        spans: Collection[int] | None = None,
        cells: bool = False,
    ) -> None:
        """Compiles the copies of up to `max_blocks` blocks. Args as `PageStore.warm_up`."""
        self._memory.pages.warm_up(max_blocks, progress, spans=spans, cells=cells)

    def flush(self) -> bool:
        """Has what memory holds written to DISK too, the last used first, as far as DISK keeps up.

        Returns whether nothing is left to write: if not, call it again soon. Nothing moves.
        """
        return self._memory.flush()

    def close(self) -> None:
        """Fails what is under way, both ways, and gives it back. No call but `check` may follow."""
        self._prefetcher.close()
        self._peers.close()
        self._memory.close()

    def check(self) -> None:
        """Asserts every invariant: of allocators, index, leases and reservations."""
        self._memory.check()
        self._prefetcher.check()
        self._peers.check()

    def _released(self) -> None:
        self._peers.receiver.memory_released()
        if self._peers.receiver.has_waiting:
            self.wake()
