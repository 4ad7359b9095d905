"""Which peers live, and in which epoch, as the cluster last said."""

from collections.abc import Mapping

from memserve_jax.core.types import InstanceId


class Membership:
    """The last broadcast, and who has been in one before.

    A peer never named yet is neither alive nor gone: it may have joined a moment ago.
    """

    def __init__(self) -> None:
        self._live: dict[InstanceId, int] = {}
        self._gone: dict[InstanceId, int] = {}  # with the epoch each was last known in

    def change(self, live: Mapping[InstanceId, int]) -> None:
        """Takes note of a broadcast."""
        self._gone |= self._live
        self._live = dict(live)
        for peer in live:
            self._gone.pop(peer, None)

    def epoch(self, peer: InstanceId) -> int | None:
        """Returns the epoch a live peer is in; None where that is not known."""
        return self._live.get(peer)

    def has_gone(self, peer: InstanceId, epoch: int | None) -> bool:
        """Whether a peer, in the epoch meant (None: whichever), is known to be over."""
        if peer in self._live:
            return epoch is not None and epoch < self._live[peer]
        return peer in self._gone and (epoch is None or epoch <= self._gone[peer])
