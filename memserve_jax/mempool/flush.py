"""What memory holds, written to DISK before an instance ends: its cache survives the restart."""

import itertools
import time
from collections import deque

from memserve_jax.mempool.disk import DiskTier
from memserve_jax.mempool.index import PrefixIndex
from memserve_jax.mempool.swap import Swapper


class Flush:
    """Goes through an index once, from what was used last to what was used longest ago.

    No more is written than DISK has places, so that nothing of it is evicted for the rest.
    """

    def __init__(self, index: PrefixIndex, swapper: Swapper, disk: DiskTier):
        self._swapper = swapper
        self._disk = disk
        self._left = deque(itertools.islice(index.by_use(), disk.allocator.num_blocks))
        self._used_ns = time.time_ns()  # files are dated, each before the one before it

    def advance(self) -> bool:
        """Has as much written as DISK takes now; returns whether nothing is left to write."""
        num_before = len(self._left)
        self._swapper.write_back(self._left, self._used_ns)
        self._used_ns -= num_before - len(self._left)
        return not self._left or self._disk.has_failed
