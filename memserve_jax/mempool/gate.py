"""How many transfers one pool has under way at once."""

from collections import OrderedDict
from collections.abc import Callable

from memserve_jax.core.types import InstanceId, TransferId


class Gate:
    """Lets at most so many transfers through; others queue, or are turned away.

    The pool's owner makes every call. Memory on both ends, staging and connections are bounded by
    it: a burst of hand-offs waits its turn in the order it came. One peer takes at most three
    quarters of the places: while it is full or stalls, transfers to others go on.
    """

    def __init__(self, limit: int):
        """Makes an open gate for `limit` transfers."""
        if limit < 1:
            raise ValueError(f"max_transfers: got {limit}, allowed: 1 or more")
        self._limit = limit
        self._limit_of_one_peer = limit - limit // 4
        self._through: dict[TransferId, InstanceId] = {}
        self._queue: OrderedDict[TransferId, tuple[InstanceId, Callable[[], None]]] = OrderedDict()

    def enter(
        self, transfer_id: TransferId, to: InstanceId, start: Callable[[], None], *, may_wait: bool
    ) -> bool:
        """Calls `start` now, and returns True; False where it is not its turn.

        One that `may_wait` is started when its turn comes; any other is turned away.
        """
        if self._has_place_for(to):
            self._through[transfer_id] = to
            start()
            return True
        if may_wait:
            self._queue[transfer_id] = to, start
        return False

    def leave(self, transfer_id: TransferId) -> None:
        """Takes note that a transfer has ended, whether it got through or not."""
        self._queue.pop(transfer_id, None)
        self._through.pop(transfer_id, None)
        while (following := self._next()) is not None:
            to, start = self._queue.pop(following)
            self._through[following] = to
            start()

    def check(self, open_ids: set[TransferId]) -> None:
        """Asserts that only transfers that are open (`open_ids`) hold a place."""
        assert len(self._through) <= self._limit, "more transfers than allowed"
        held = self._through.keys() | self._queue.keys()
        assert held <= open_ids, f"ended transfers hold places: {held - open_ids}"
        assert self._next() is None, "a place is free, some wait"

    def _next(self) -> TransferId | None:
        """The first in the queue that there is a place for."""
        if len(self._through) >= self._limit:
            return None
        waiting = self._queue.items()
        return next((name for name, (to, _) in waiting if self._has_place_for(to)), None)

    def _has_place_for(self, to: InstanceId) -> bool:
        if len(self._through) >= self._limit:
            return False
        num_there = sum(peer == to for peer in self._through.values())
        return num_there < self._limit_of_one_peer
