"""Who goes next of those that wait: by priority, and fairly between the tenants of a priority.

Each tenant has an account of what it was served, in tokens over its weight, and the one with the
least goes next: weighted fair queueing by virtual counters (VTC, arXiv 2401.00588). One who comes
to the queue after a while starts level with those that are served, so idling saves nothing up.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

STARVED_TURN = 4  # one release in so many may go to whoever has waited too long
SPARE_ACCOUNTS = 1024  # of tenants that do not wait, kept beside those that do

_Item = TypeVar("_Item")


@dataclass(slots=True, eq=False)
class Place(Generic[_Item]):
    """A place in the queue. Made by `FairQueue.push`."""

    item: _Item
    tenant: str
    priority: int  # lower goes first
    cost: float  # of serving it, in tokens
    since_s: float
    number: int  # in order of arrival


@dataclass(slots=True)
class _Level(Generic[_Item]):
    """Those of one priority."""

    lines: dict[str, dict[int, Place[_Item]]] = field(default_factory=dict)  # in order of arrival
    heads: list[tuple[float, int, str]] = field(default_factory=list)  # a heap, some out of date


class FairQueue(Generic[_Item]):
    """Items that wait. Of one tenant and priority, the first that came goes first."""

    def __init__(self, *, weights: Mapping[str, float], patience_s: float):
        """Starts empty.

        Args:
          weights: Tenant -> its share beside the others'; 1 where it is not named.
          patience_s: Whoever has waited longer goes before better priorities now and then.
        """
        self._weights = weights
        self._patience_s = patience_s
        self._levels: dict[int, _Level[_Item]] = {}
        self._all: dict[int, Place[_Item]] = {}  # in order of arrival
        self._accounts: dict[str, float] = {}  # tokens over weight
        self._num_of: dict[str, int] = {}  # tenant -> how many wait
        self._level_account = 0.0  # of the last one served, before it was
        self._num_pushed = 0
        self._num_since_starved = STARVED_TURN

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Place[_Item]]:
        """Yields every place, the longest waiting first."""
        return iter(list(self._all.values()))

    def num_of(self, tenant: str) -> int:
        """Returns how many of `tenant` wait."""
        return self._num_of.get(tenant, 0)

    def push(
        self, item: _Item, *, tenant: str, priority: int, cost: float, now_s: float
    ) -> Place[_Item]:
        """Queues `item` and returns its place."""
        place = Place(item, tenant, priority, cost, now_s, self._num_pushed)
        self._num_pushed += 1
        if not self.num_of(tenant):
            account = self._accounts.get(tenant, 0.0)
            self._accounts[tenant] = max(account, self._level_account)
        level = self._levels.setdefault(priority, _Level())
        line = level.lines.setdefault(tenant, {})
        line[place.number] = self._all[place.number] = place
        self._num_of[tenant] = self.num_of(tenant) + 1
        if len(line) == 1:
            self._show(level, tenant)
        return place

    def first(self, now_s: float) -> Place[_Item] | None:
        """Returns who goes next, who stays; None where nobody waits."""
        if not self._all:
            return None
        oldest = next(iter(self._all.values()))
        is_starved = now_s - oldest.since_s >= self._patience_s
        if is_starved and self._num_since_starved >= STARVED_TURN - 1:
            return oldest
        return self._best(self._levels[min(self._levels)])

    def serve(self, place: Place[_Item]) -> None:
        """Takes `place` out to be served, and puts it on its tenant's account."""
        is_best = place is self._best(self._levels[min(self._levels)])
        self._num_since_starved = self._num_since_starved + 1 if is_best else 0
        self._level_account = max(self._level_account, self._accounts[place.tenant])
        self.charge(place.tenant, place.cost)
        self.remove(place)

    def remove(self, place: Place[_Item]) -> None:
        """Takes `place` out; it costs nothing."""
        del self._all[place.number]
        level = self._levels[place.priority]
        line = level.lines[place.tenant]
        was_head = next(iter(line)) == place.number
        del line[place.number]
        self._num_of[place.tenant] -= 1
        if not self._num_of[place.tenant]:
            del self._num_of[place.tenant]
            self._forget_idle()
        if not line:
            del level.lines[place.tenant]
        elif was_head:
            self._show(level, place.tenant)
        if not level.lines:
            del self._levels[place.priority]

    def charge(self, tenant: str, cost: float) -> None:
        """Puts `cost` tokens on a tenant's account; less than 0: it turned out to be less."""
        if tenant not in self._accounts:
            return  # one who comes back starts level with the others in any case
        self._accounts[tenant] += cost / self._weights.get(tenant, 1.0)
        for level in self._levels.values():
            if tenant in level.lines:
                self._show(level, tenant)

    def num_ahead(self, tenant: str, priority: int) -> int:
        """Returns how many may go before a newcomer of `tenant` and `priority`.

        All of better priorities, and as many of each other tenant as of its own, by weight.
        """
        ahead = sum(
            len(line)
            for other, level in self._levels.items()
            if other < priority
            for line in level.lines.values()
        )
        level = self._levels.get(priority)
        if level is None:
            return ahead
        own = len(level.lines.get(tenant, ()))
        turns = (own + 1) / self._weights.get(tenant, 1.0)
        for other, line in level.lines.items():
            share = turns * self._weights.get(other, 1.0)
            ahead += own if other == tenant else min(len(line), int(share + 0.999999))
        return ahead

    def check(self) -> None:
        """Asserts that every place is filed once, and every line in order."""
        filed = [
            place
            for level in self._levels.values()
            for line in level.lines.values()
            for place in line.values()
        ]
        assert sorted(place.number for place in filed) == sorted(self._all)
        for priority, level in self._levels.items():
            assert level.lines, "a priority that nobody has"
            for tenant, line in level.lines.items():
                assert line and sorted(line) == list(line), "a line out of order"
                assert all(place.priority == priority for place in line.values())
                assert (self._accounts[tenant], next(iter(line)), tenant) in level.heads
        counts = dict.fromkeys(self._num_of, 0)
        for place in filed:
            counts[place.tenant] += 1
        assert counts == self._num_of and all(counts.values())
        assert len(self._accounts) - len(self._num_of) <= SPARE_ACCOUNTS

    def _best(self, level: _Level[_Item]) -> Place[_Item]:
        """Returns the head of the line whose tenant was served least; the first come of equals."""
        while True:
            account, number, tenant = level.heads[0]
            line = level.lines.get(tenant)
            if line and number in line and account == self._accounts[tenant]:
                return line[number]
            heapq.heappop(level.heads)

    def _show(self, level: _Level[_Item], tenant: str) -> None:
        """Notes where the head of a tenant's line stands now."""
        heapq.heappush(
            level.heads, (self._accounts[tenant], next(iter(level.lines[tenant])), tenant)
        )
        if len(level.heads) > 4 * len(level.lines) + 64:
            level.heads = [
                (self._accounts[name], next(iter(line)), name) for name, line in level.lines.items()
            ]
            heapq.heapify(level.heads)

    def _forget_idle(self) -> None:
        """Keeps accounts few: of those that do not wait, the ones that owe least go first."""
        if len(self._accounts) - len(self._num_of) <= SPARE_ACCOUNTS:
            return
        idle = sorted(
            (account, tenant)
            for tenant, account in self._accounts.items()
            if tenant not in self._num_of
        )
        for _, tenant in idle[: len(idle) - SPARE_ACCOUNTS // 2]:
            del self._accounts[tenant]
