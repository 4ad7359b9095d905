"""What there is to tell the schedulers of a pool's cache: changes since last time, or all of it.

The index only notes which nodes changed. What that comes to, and the blocks' names, is found when
somebody asks, between two steps: a block that came and went in between is never named, and a
lookup or an insert costs no more for being followed.
"""

from memserve_jax.core.block_names import NAME_BYTES
from memserve_jax.core.kv_events import KVEvent, KVEvents, KVSnapshot, in_pieces
from memserve_jax.core.types import Tier
from memserve_jax.mempool.disk import DiskTier
from memserve_jax.mempool.index import Holding, PrefixIndex, PrefixNode
from memserve_jax.mempool.node_names import name_of_node

_HBM, _HOST = 1, 2  # bits of `Holding.announced`
_FLAGS = ((Tier.HBM, _HBM), (Tier.HOST, _HOST))


class Journal:
    """Numbers the events of one pool. The pool's owner makes every call.

    Nothing is kept until the first `snapshot`: a pool that nobody follows pays nothing.
    """

    def __init__(self, index: PrefixIndex, disk: DiskTier | None):
        """Makes the journal of an index and what lies beneath it."""
        self._index = index
        self._disk = disk
        self._num_events = 0

    def events(self) -> KVEvents:
        """Returns what changed since the last call, removals first: so no tier ever overflows."""
        first = self._num_events
        stored: dict[Tier, list[bytes]] = {tier: [] for tier in Tier}
        removed: dict[Tier, list[bytes]] = {tier: [] for tier in Tier}
        if self._index.changed:
            changed, self._index.changed = self._index.changed, []
            self._sift(changed, stored, removed)
        disk = self._disk
        if disk is not None and disk.changed:
            names, disk.changed = disk.changed, {}
            for name, was_there in names.items():
                if (name in disk) != was_there:
                    (removed if was_there else stored)[Tier.DISK].append(name)
        events = [
            KVEvent(tier, removed=piece) for tier in Tier for piece in in_pieces(removed[tier])
        ]
        events += [
            KVEvent(tier, stored=piece) for tier in Tier for piece in in_pieces(stored[tier])
        ]
        self._num_events += len(events)
        return KVEvents(first, tuple(events))

    def snapshot(self) -> KVSnapshot:
        """Returns all that is held; call `events` first, whose changes are in it."""
        assert not self._index.changed, "events are due"
        self._index.changed = []
        names: dict[Tier, list[bytes]] = {tier: [] for tier in Tier}
        for node in reversed(self._index.by_use()):  # what comes later in a prefix first
            name = name_of_node(node)
            node.value.announced = held = _held(node.value)
            for tier, flag in _FLAGS:
                if held & flag:
                    names[tier].append(name)
        if self._disk is not None:
            assert not self._disk.changed, "events are due"
            self._disk.changed = {}
            names[Tier.DISK] += self._disk
        events: list[KVEvent] = []
        for tier in (Tier.DISK, Tier.HOST, Tier.HBM):  # what is near is used last
            for piece in in_pieces(names[tier]):
                events.append(KVEvent(tier, stored=_reversed(piece)))
        return KVSnapshot(self._num_events, tuple(events))

    def _sift(
        self,
        changed: list[PrefixNode],
        stored: dict[Tier, list[bytes]],
        removed: dict[Tier, list[bytes]],
    ) -> None:
        """Adds the names of what differs from what was announced, and notes it as announced."""
        for node in reversed(changed):  # the deepest first: it names those before it too
            holding = node.value
            held, told = _held(holding), holding.announced
            if held == told:  # came and went, or noted several times
                continue
            holding.announced = held
            name = holding.name or name_of_node(node)
            for tier, flag in _FLAGS:
                if held & ~told & flag:
                    stored[tier].append(name)
                elif told & ~held & flag:
                    removed[tier].append(name)
        for names in stored.values():
            names.reverse()


def _held(holding: Holding) -> int:
    return (_HBM if holding.hbm is not None else 0) | (_HOST if holding.host is not None else 0)


def _reversed(packed: bytes) -> bytes:
    size = NAME_BYTES
    return b"".join(packed[at - size : at] for at in range(len(packed), 0, -size))
