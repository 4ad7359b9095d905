"""Which peers live, and in which epoch, as the cluster last said."""

from collections.abc import Mapping

from memserve_jax.core.types import InstanceId


class Membership:
    """The last broadcast, and who has been in one before.

    A peer never named yet is neither alive nor gone: it may have joined a moment ago.
    """

    def __init__(self) -> None:
        self._live: dict[InstanceId, int] = {}
        self._gone: set[InstanceId] = set()

    def change(self, live: Mapping[InstanceId, int]) -> None:
        """Takes note of a broadcast."""
        self._gone |= self._live.keys()
        self._gone -= live.keys()
        self._live = dict(live)

    def epoch(self, peer: InstanceId) -> int | None:
        """Returns the epoch a live peer is in; None where that is not known."""
        return self._live.get(peer)

    def has_gone(self, peer: InstanceId, epoch: int | None) -> bool:
        """Whether a peer, in the epoch meant (None: whichever), is known to be over."""
        last = self._live.get(peer)
        if last is None:
            return peer in self._gone
        return epoch is not None and epoch < last
