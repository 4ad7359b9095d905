"""What there is to know of a pool, without changing anything."""

from collections.abc import Sequence

from jax.sharding import NamedSharding

from memserve_jax.core.cost_model import FetchOffer
from memserve_jax.core.kv_events import KVEvents, KVSnapshot
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import FetchSource, InstanceId
from memserve_jax.mempool.counters import PoolCounters, PoolStatus
from memserve_jax.mempool.exchange import Exchange
from memserve_jax.mempool.memory import LocalMemory
from memserve_jax.mempool.port import Port


class PoolFacts:
    """The part of `MemPool` that changes nothing of it. Its owner makes every call."""

    _memory: LocalMemory
    _peers: Exchange

    @property
    def instance(self) -> InstanceId:
        """Whose pool this is."""
        return self._memory.instance

    @property
    def epoch(self) -> int:
        """Which life of the instance."""
        return self._memory.epoch

    @property
    def layout(self) -> KVLayout:
        """Sizes of the KV."""
        return self._memory.layout

    @property
    def packed_sharding(self) -> NamedSharding:
        """How packed blocks must lie on this pool's mesh when they are delivered."""
        return self._memory.pages.packed_sharding

    @property
    def port(self) -> Port:
        """Where bytes come in."""
        return self._peers.port

    @property
    def num_leased(self) -> int:
        """Blocks under a lease, in all tiers; reservations and transfers included."""
        return self._memory.num_leased

    @property
    def num_available(self) -> int:
        """HBM blocks that `alloc_mem` could supply: free ones and those it may evict."""
        return self._memory.num_available

    @property
    def num_free(self) -> int:
        """HBM blocks free without evicting."""
        return self._memory.num_free

    @property
    def num_hbm_blocks(self) -> int:
        """M, all blocks in HBM."""
        return self._memory.num_hbm_blocks

    @property
    def counters(self) -> PoolCounters:
        """Running totals since the start."""
        return self._memory.tally()

    @property
    def status(self) -> PoolStatus:
        """Occupancy of each tier."""
        return self._memory.status

    def kv_events(self) -> KVEvents:
        """Returns which historical blocks came or went since the last call, on any tier.

        None before the first `kv_snapshot`.
        """
        return self._memory.journal.events()

    def kv_snapshot(self) -> tuple[KVEvents, KVSnapshot]:
        """Returns the events that are due, and all historical blocks with those."""
        events = self._memory.journal.events()
        return events, self._memory.journal.snapshot()

    @property
    def num_transfers(self) -> int:
        """Transfers, fetches and leases on peers' blocks that were begun here and not ended."""
        peers = self._peers
        return peers.sender.num_open + peers.fetcher.num_open + len(peers.remote)

    @property
    def num_reservations(self) -> int:
        """Reservations that peers have here, waiting ones included."""
        return self._peers.receiver.num_open

    def offer_of(
        self, token_ids: Sequence[int], source: FetchSource, *, salt: str = ""
    ) -> FetchOffer:
        """Returns what a fetch from `source` could add to what `match` finds of a prompt here."""
        layout = self.layout
        max_blocks = (len(token_ids) - 1) // layout.block_size_tokens
        num_held = self._memory.peek(token_ids, salt, max_blocks=max_blocks)
        usable = min(source.num_tokens, len(token_ids) - 1)
        num_offered = layout.whole_blocks(usable) * layout.block_size_tokens
        num_blocks = max(0, num_offered - num_held) // layout.block_size_tokens
        return FetchOffer(
            num_tokens=len(token_ids),
            num_held=num_held,
            num_offered=num_offered,
            num_blocks=num_blocks,
            num_bytes=num_blocks * layout.block_bytes,
        )
