"""Hits that come nearer while their request waits: DISK or HOST -> HBM.

Nothing is leased for a waiting request: what has arrived is historical KV like any other, the
last used just now. So prefetches can neither fill the pool nor block anybody.
"""

import functools
from collections import deque
from collections.abc import Sequence

import numpy as np

from memserve_jax.core.block_keys import block_keys
from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import OutOfBlocksError
from memserve_jax.core.types import Tier
from memserve_jax.mempool.disk import Reading
from memserve_jax.mempool.inbox import Inbox
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.memory import LocalMemory

READ_BLOCKS = 16  # of one read: a piece is in HBM while the next is being read


class Prefetch:
    """One prompt's hits on their way. The pool's owner makes every call.

    Attributes:
      is_done: Whether nothing is under way any more: all that could come has come, or the time
        is over, or it was cancelled.
      num_wanted: Blocks it set out to move.
      num_blocks: Blocks it has moved.
    """

    __slots__ = (
        "_lease",
        "_readings",
        "_token_ids",
        "deadline_s",
        "is_done",
        "num_before",
        "num_blocks",
        "num_wanted",
        "salt",
    )

    def __init__(self, token_ids: Sequence[int], salt: str, deadline_s: float):
        """For `Prefetcher` alone."""
        self._token_ids = token_ids
        self.salt = salt
        self.deadline_s = deadline_s
        self.is_done = False
        self.num_wanted = self.num_blocks = 0
        self.num_before = 0  # blocks of the prompt before those of the first reading
        self._readings: deque[Reading] = deque()
        self._lease: Lease | None = None  # of the blocks on DISK

    def cancel(self) -> None:
        """Ends it; what has arrived stays. Nothing is leased for it when this returns."""
        self.is_done = True
        for reading in self._readings:
            reading.blocks.cancel()
        self._readings.clear()
        if self._lease is not None:
            self._lease.close()
            self._lease = None


class Prefetcher:
    """Every prefetch of a pool that is under way. Its owner makes every call."""

    def __init__(self, memory: LocalMemory, clock: Clock, inbox: Inbox):
        self._memory = memory
        self._clock = clock
        self._inbox = inbox
        self._under_way: list[Prefetch] = []

    @property
    def deadlines_s(self) -> list[float]:
        """When `expire` has something to do, for each prefetch under way."""
        return [prefetch.deadline_s for prefetch in self._under_way if not prefetch.is_done]

    def begin(self, token_ids: Sequence[int], salt: str, timeout_s: float) -> Prefetch:
        """See `MemPool.prefetch`."""
        prefetch = Prefetch(token_ids, salt, self._clock.now_s() + timeout_s)
        max_blocks = (len(token_ids) - 1) // self._memory.layout.block_size_tokens
        self._bring_from_host(prefetch, max_blocks)
        if self._memory.disk is not None:
            self._begin_reading(prefetch, max_blocks)
        if prefetch._readings:
            self._under_way.append(prefetch)
        else:
            prefetch.is_done = True
        return prefetch

    def expire(self) -> None:
        """Ends what is past its deadline, and forgets what has ended."""
        now_s = self._clock.now_s()
        for prefetch in self._under_way:
            if now_s >= prefetch.deadline_s:
                prefetch.cancel()
        self._under_way = [prefetch for prefetch in self._under_way if not prefetch.is_done]

    def close(self) -> None:
        """Cancels everything."""
        for prefetch in self._under_way:
            prefetch.cancel()
        self._under_way.clear()

    def check(self) -> None:
        """Asserts that what is under way holds its blocks on DISK, and nothing else does."""
        for prefetch in self._under_way:
            is_held = prefetch._lease is not None and prefetch._lease.is_open
            assert is_held != prefetch.is_done, "an ended prefetch holds blocks, or a live one none"

    def _bring_from_host(self, prefetch: Prefetch, max_blocks: int) -> None:
        memory = self._memory
        with memory.match(prefetch._token_ids, prefetch.salt, max_blocks=max_blocks) as lease:
            if all(address.tier is Tier.HBM for address in lease.blocks):
                return
            try:
                num_blocks = memory.swap_in(lease)
            except OutOfBlocksError:
                return  # they come when there is room for the request
        prefetch.num_wanted += num_blocks
        self._moved(prefetch, num_blocks)

    def _begin_reading(self, prefetch: Prefetch, max_blocks: int) -> None:
        disk = self._memory.disk
        assert disk is not None
        num_before, lease = self._memory.match_on_disk(
            prefetch._token_ids, prefetch.salt, max_blocks=max_blocks
        )
        if not len(lease):
            lease.close()
            return
        prefetch.num_before, prefetch._lease = num_before, lease
        prefetch.num_wanted += len(lease)
        places = [address.block for address in lease.blocks]
        for start in range(0, len(places), READ_BLOCKS):
            reading = disk.read(places[start : start + READ_BLOCKS])
            prefetch._readings.append(reading)
            arrive = functools.partial(self._arrive, prefetch, reading)
            reading.blocks.add_done_callback(
                lambda future, arrive=arrive: future.cancelled() or self._inbox.post(arrive)
            )

    def _arrive(self, prefetch: Prefetch, reading: Reading) -> None:
        disk = self._memory.disk
        assert disk is not None
        if prefetch.is_done:
            disk.took(reading)
            return
        while prefetch._readings and prefetch._readings[0].blocks.done():
            self._land(prefetch, prefetch._readings.popleft())
            if prefetch.is_done:
                return
        if not prefetch._readings:
            prefetch.cancel()

    def _land(self, prefetch: Prefetch, reading: Reading) -> None:
        """Takes in the next blocks; ends the prefetch where they, or some of them, will not do."""
        memory = self._memory
        assert memory.disk is not None
        contents = memory.disk.took(reading)
        num_new = 0
        if contents:
            num_new = self._take_in(prefetch, contents)
        prefetch.num_before += len(contents)
        self._moved(prefetch, num_new)
        is_whole = len(contents) == len(reading.names)
        if not (is_whole and self._is_in_memory(prefetch)):
            prefetch.cancel()

    def _take_in(self, prefetch: Prefetch, contents: Sequence[np.ndarray]) -> int:
        """Puts blocks behind the prefix that they follow: into HBM, or HOST where HBM is short.

        Returns:
          Blocks newly indexed; 0 where there is no room, or the prefix has gone.
        """
        memory, num_before = self._memory, prefetch.num_before
        token_ids, salt = prefetch._token_ids, prefetch.salt
        keys = block_keys(
            token_ids, memory.layout.block_size_tokens, max_blocks=num_before + len(contents)
        )
        with memory.match(token_ids, salt, max_blocks=num_before) as prefix:
            if len(prefix) < num_before:
                return 0
            tier = Tier.HBM
            try:
                memory.swap_in(prefix)
                room = memory.alloc(len(contents), tier)
            except OutOfBlocksError:
                tier = Tier.HOST
                if memory.available(tier) < len(contents):
                    return 0
                room = memory.alloc(len(contents), tier)
            with room:
                blocks = [address.block for address in room.blocks]
                memory.fill(tier, blocks, contents)
                return memory.index.extend(tier, salt, keys, blocks)

    def _is_in_memory(self, prefetch: Prefetch) -> bool:
        """Whether all blocks before the next reading are in memory, so that it can follow them."""
        memory = self._memory
        num_tokens = memory.peek(prefetch._token_ids, prefetch.salt, max_blocks=prefetch.num_before)
        return num_tokens == prefetch.num_before * memory.layout.block_size_tokens

    def _moved(self, prefetch: Prefetch, num_blocks: int) -> None:
        prefetch.num_blocks += num_blocks
        self._memory.counters.blocks_prefetched += num_blocks
