"""What an instance tells its schedulers of its cache: events as they come, else all of it.

Each scheduler hears at its own pace. One that cannot go on from what it has, because it is new,
or was away for longer than the log reaches back, is told everything once, and events from there.
"""

import asyncio
import collections
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence

from memserve_jax.core.block_names import NAME_BYTES
from memserve_jax.core.kv_events import MAX_UPDATE_BLOCKS, KVEvent, KVEvents, KVSnapshot
from memserve_jax.proto import memserve_pb2 as pb

MAX_LOG_BLOCKS = 1 << 18
MAX_REFUSALS = 3  # in one life of a scheduler; then it is told no more

_log = logging.getLogger(__name__)


class KVLog:
    """The latest events of an instance. Lives in the asyncio loop."""

    def __init__(self, max_blocks: int = MAX_LOG_BLOCKS):
        """Starts empty; the latest events that tell of `max_blocks` blocks are kept."""
        self._max_blocks = max_blocks
        self._events: collections.deque[KVEvent] = collections.deque()
        self._num_blocks = 0
        self.next_event = 0  # number of the next one to come

    def append(self, new: KVEvents) -> None:
        """Takes events that follow on those before."""
        assert new.first == self.next_event, f"events from {new.first}, not {self.next_event}"
        self._events += new.events
        self.next_event = new.after
        self._num_blocks += sum(event.num_blocks for event in new.events)
        while self._num_blocks > self._max_blocks:
            self._num_blocks -= self._events.popleft().num_blocks

    def restart(self) -> None:
        """Forgets the events: those to come are of another pool. Reports must begin anew."""
        self._events.clear()
        self._num_blocks = self.next_event = 0

    def since(self, number: int) -> list[KVEvent] | None:
        """Returns the events from `number` on, as many as fit into one message.

        None: some of them are not kept any more.
        """
        skipped = number - (self.next_event - len(self._events))
        if skipped < 0:
            return None
        events: list[KVEvent] = []
        num_blocks = 0
        for event in itertools.islice(self._events, skipped, None):
            num_blocks += event.num_blocks
            if num_blocks > MAX_UPDATE_BLOCKS:
                break
            events.append(event)
        return events


class KVReport:
    """What one scheduler has been told. Lives in the asyncio loop.

    What `update` returns goes out with a heartbeat; then call `accepted` or `refused`. After
    neither, when nobody knows whether it arrived, the same is sent again.
    """

    def __init__(self, log: KVLog, take_snapshot: Callable[[], Awaitable[KVSnapshot]]):
        """Reports nothing until `begin`.

        Args:
          log: The events; whoever has them appends.
          take_snapshot: Returns all that is held, with every event in it in `log`.
        """
        self._log = log
        self._take_snapshot = take_snapshot
        self._is_wanted = False
        self._next_event: int | None = None  # None: a snapshot is due
        self._parts: collections.deque[pb.KvUpdate] = collections.deque()  # of it, not sent yet
        self._taking: asyncio.Task[None] | None = None
        self._num_refused = 0

    @property
    def has_more(self) -> bool:
        """Whether there is something to send at once."""
        if not self._is_wanted or self._next_event is None:
            return False
        return bool(self._parts) or self._next_event < self._log.next_event

    def begin(self, *, is_wanted: bool) -> None:
        """Starts anew, with a scheduler that knows nothing."""
        self._is_wanted = is_wanted
        self._num_refused = 0
        self._restart()

    def update(self) -> pb.KvUpdate | None:
        """Returns what to tell next; None: there is nothing, or it is still being looked up."""
        if not self._is_wanted:
            return None
        if self._next_event is None:
            if self._taking is None:  # the engine may be in a long step: heartbeats go on
                self._taking = asyncio.create_task(self._take())
            return None
        if self._parts:
            return self._parts[0]
        events = self._log.since(self._next_event)
        if events is None:
            self._restart()
            return self.update()
        return _message(self._next_event, events) if events else None

    def accepted(self, update: pb.KvUpdate | None, reply: pb.HeartbeatReply) -> None:
        """Takes note of the answer to a heartbeat and the update that it carried, if any."""
        if reply.wants_kv_snapshot:
            if self._next_event is not None:  # else one is on its way
                self._restart()
        elif update is not None and update.HasField("snapshot_part"):
            self._parts.popleft()
        elif update is not None and self._next_event is not None:
            self._next_event += len(update.events)

    def refused(self, reason: str) -> None:
        """Takes note that the scheduler calls the last update impossible."""
        self._num_refused += 1
        self._is_wanted = self._num_refused < MAX_REFUSALS
        after = "a snapshot follows" if self._is_wanted else "it is told no more"
        _log.error("a scheduler refused what it was told of the cache, %s: %s", after, reason)
        self._restart()

    def close(self) -> None:
        """Reports no more."""
        self._is_wanted = False
        self._restart()

    def _restart(self) -> None:
        self._next_event = None
        self._parts.clear()
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    async def _take(self) -> None:
        try:
            snapshot = await self._take_snapshot()
            self._next_event, self._parts = snapshot.next_event, _parts(snapshot)
        finally:
            if self._taking is asyncio.current_task():
                self._taking = None  # if it failed, the next heartbeat begins another


def _parts(snapshot: KVSnapshot) -> collections.deque[pb.KvUpdate]:
    parts: collections.deque[pb.KvUpdate] = collections.deque()
    num_blocks = 0
    for event in snapshot.events:
        num_blocks += event.num_blocks
        if not parts or num_blocks > MAX_UPDATE_BLOCKS:
            parts.append(_message(snapshot.next_event, [], part=len(parts)))
            num_blocks = event.num_blocks
        parts[-1].events.append(_event_message(event))
    if not parts:
        parts.append(_message(snapshot.next_event, [], part=0))
    parts[-1].is_last_part = True
    return parts


def _message(first: int, events: Sequence[KVEvent], *, part: int | None = None) -> pb.KvUpdate:
    return pb.KvUpdate(
        first_event=first, events=[_event_message(event) for event in events], snapshot_part=part
    )


def _event_message(event: KVEvent) -> pb.KvEvent:
    assert (len(event.stored) + len(event.removed)) % NAME_BYTES == 0, "half a name"
    return pb.KvEvent(tier=event.tier, stored=event.stored, removed=event.removed)
