"""What a pool has done, and how full it is."""

from dataclasses import dataclass

from memserve_jax.core.types import Tier


@dataclass(slots=True, kw_only=True)
class PoolCounters:
    """Running totals since the pool was made. Bytes are those of true heads, unpadded."""

    blocks_sent: int = 0
    bytes_sent: int = 0
    transfer_calls: int = 0  # calls of the transport
    transfer_s: float = 0.0  # summed, from handing blocks to the transport to their arrival
    transfers_done: int = 0
    transfers_failed: int = 0
    transfers_queued: int = 0  # that had to wait for their turn
    blocks_received: int = 0
    bytes_received: int = 0
    blocks_held: int = 0  # on offer to this pool, and not sent because it had them
    reservations_refused: int = 0
    blocks_fetched: int = 0  # that peers sent because this pool asked
    fetches_failed: int = 0
    blocks_swapped_out: int = 0  # HBM -> HOST or DISK, evictions included
    blocks_swapped_in: int = 0
    blocks_evicted: int = 0  # that left HBM to make room, to HOST, to DISK or for good
    blocks_dropped: int = 0  # evicted for good: no tier holds them any more
    blocks_prefetched: int = 0  # HOST or DISK -> HBM, or DISK -> HOST, for a queued request
    disk_blocks_written: int = 0
    disk_blocks_read: int = 0
    disk_blocks_refused: int = 0  # files that were not what their names promise
    disk_blocks_skipped: int = 0  # not written: the disk was behind, or takes no more
    compiled_shapes: int = 0  # of gather and scatter


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStatus:
    """Occupancy of one tier. A block may be both leased and indexed."""

    tier: Tier
    num_blocks: int
    free_blocks: int
    leased_blocks: int
    indexed_blocks: int
    pinned_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """Occupancy of every tier the pool has."""

    tiers: tuple[TierStatus, ...]
