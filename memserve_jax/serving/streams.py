"""From engine events to the request that waits for them. Lives in the asyncio loop."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from memserve_jax.core.errors import DuplicateRequestError, MemServeError
from memserve_jax.core.types import RequestId
from memserve_jax.engine.events import Event, Failed


class EventStreams:
    """One queue of events for every request in flight at an instance."""

    def __init__(self) -> None:
        self._queues: dict[RequestId, asyncio.Queue[Event]] = {}

    @property
    def num_open(self) -> int:
        """Requests in flight."""
        return len(self._queues)

    @property
    def request_ids(self) -> list[RequestId]:
        """The requests in flight; any thread may ask."""
        return list(self._queues)

    @contextlib.contextmanager
    def open(self, request_id: RequestId) -> Iterator[asyncio.Queue[Event]]:
        """Receives the events of `request_id` while open.

        Raises:
          DuplicateRequestError: the request is in flight already.
        """
        if request_id in self._queues:
            raise DuplicateRequestError(f"request_id: {request_id!r} is in flight already")
        self._queues[request_id] = queue = asyncio.Queue()
        try:
            yield queue
        finally:
            del self._queues[request_id]

    def deliver(self, events: Sequence[Event]) -> None:
        """Hands each event to its request; events of a request that is gone are dropped."""
        for event in events:
            queue = self._queues.get(event.request_id)
            if queue is not None:
                queue.put_nowait(event)

    def fail_all(self, error: MemServeError) -> None:
        """Tells every request in flight that `error` ended it."""
        for request_id, queue in self._queues.items():
            queue.put_nowait(Failed(request_id=request_id, error=error))
