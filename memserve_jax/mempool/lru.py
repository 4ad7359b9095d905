"""The least recently used of a set that others define: a heap that is right when it matters."""

import heapq
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class VictimHeap(Generic[T]):
    """Finds the item with the least stamp among those that are victims now.

    Entries may be out of date; `pop` drops those that are. So whoever makes an item a victim
    must `push` it, and nobody must take anything out. O(log n) a call, amortised.
    """

    def __init__(self, *, is_victim: Callable[[T], bool], stamp: Callable[[T], int], capacity: int):
        """Makes an empty heap.

        Args:
          is_victim: Whether an item may be popped now.
          stamp: When it was used last.
          capacity: Most items that can be victims at a time; stale entries are swept when the
            heap has grown well past it.
        """
        self._is_victim = is_victim
        self._stamp = stamp
        self._sweep_at = 2 * capacity + 64
        self._entries: list[tuple[int, int, T]] = []
        self._num_pushed = 0

    def __len__(self) -> int:
        """Entries, stale ones included."""
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """Items of all entries, in no order, some twice."""
        return (item for _, _, item in self._entries)

    def push(self, item: T) -> None:
        """Notes that an item is a victim, or might be."""
        self._num_pushed += 1  # ties go to the earlier push; items are never compared
        heapq.heappush(self._entries, (self._stamp(item), self._num_pushed, item))
        if len(self._entries) > self._sweep_at:
            self._sweep()

    def pop(self) -> T | None:
        """Takes out and returns the victim used longest ago; None where there is no victim."""
        while self._entries:
            stamp, _, item = heapq.heappop(self._entries)
            if not self._is_victim(item):
                continue
            if self._stamp(item) != stamp:
                self.push(item)  # used since: it goes to its new place
                continue
            return item
        return None

    def _sweep(self) -> None:
        victims = {id(item): item for item in self if self._is_victim(item)}
        self._entries = [
            (self._stamp(item), order, item) for order, item in enumerate(victims.values())
        ]
        heapq.heapify(self._entries)
