"""How many transfers one pool has under way at once."""

from collections import OrderedDict
from collections.abc import Callable

from memserve_jax.core.types import TransferId


class Gate:
    """Lets at most so many transfers through; others queue, or are turned away.

    The pool's owner makes every call. Memory on both ends, staging and connections are bounded by
    it: a burst of hand-offs waits its turn in the order it came.
    """

    def __init__(self, limit: int):
        """Makes an open gate for `limit` transfers."""
        if limit < 1:
            raise ValueError(f"max_transfers: got {limit}, allowed: 1 or more")
        self._limit = limit
        self._through: set[TransferId] = set()
        self._queue: OrderedDict[TransferId, Callable[[], None]] = OrderedDict()
        self.num_queued = 0  # that have ever had to wait

    def enter(self, transfer_id: TransferId, start: Callable[[], None], *, may_wait: bool) -> bool:
        """Calls `start` now, or when its turn comes; False where it may not wait and must."""
        if len(self._through) < self._limit:
            self._through.add(transfer_id)
            start()
            return True
        if may_wait:
            self._queue[transfer_id] = start
            self.num_queued += 1
        return may_wait

    def leave(self, transfer_id: TransferId) -> None:
        """Takes note that a transfer has ended, whether it got through or not."""
        self._queue.pop(transfer_id, None)
        self._through.discard(transfer_id)
        while self._queue and len(self._through) < self._limit:
            following, start = self._queue.popitem(last=False)
            self._through.add(following)
            start()

    def check(self, open_ids: set[TransferId]) -> None:
        """Asserts that only transfers that are open (`open_ids`) hold a place."""
        assert len(self._through) <= self._limit, "more transfers than allowed"
        held = self._through | self._queue.keys()
        assert held <= open_ids, f"ended transfers hold places: {held - open_ids}"
        assert not (self._queue and len(self._through) < self._limit), "a place is free, some wait"
