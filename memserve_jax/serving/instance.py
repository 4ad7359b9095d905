"""What the services of one instance share: who it is, its engine, and whether it takes work."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from memserve_jax.core.errors import MemServeError, NoInstanceError
from memserve_jax.core.kv_events import KVEvents, KVSnapshot
from memserve_jax.core.types import RequestId
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import Limits
from memserve_jax.serving.counts import InstanceCounts
from memserve_jax.serving.engine_parts import EngineParts, State
from memserve_jax.serving.kv_reports import KVLog
from memserve_jax.serving.loop import EngineLoop
from memserve_jax.serving.peers import Context, Peers, answered_errors
from memserve_jax.serving.status import status_message
from memserve_jax.serving.streams import EventStreams
from memserve_jax.telemetry.instance_readings import status_readings
from memserve_jax.telemetry.metric import Reading
from memserve_jax.telemetry.process_telemetry import SILENT, ProcessTelemetry

SPANS = {"Generate": "answer", "Prefill": "prefill"}  # method -> name of its span
SNAPSHOT_S = 0.05  # how old the state told to schedulers may be while steps are made

_T = TypeVar("_T")


class Instance:
    """One instance as its servicers see it. Lives in the asyncio loop."""

    def __init__(
        self,
        parts: EngineParts,
        *,
        target: str,
        peers: Peers,
        asyncio_loop: asyncio.AbstractEventLoop,
        telemetry: ProcessTelemetry = SILENT,
    ):
        """Makes the engine thread, not started yet, and gives the pool its wake-up.

        Args:
          parts: The engine thread's once it has started.
          target: HOST:PORT where peers and clients reach this instance.
          peers: Where the other instances are.
          asyncio_loop: What this object and the servicers live in.
          telemetry: Where its metrics and spans go.
        """
        self.target = target
        self._metrics_target = telemetry.target
        self.tracer = telemetry.tracer
        self.peers = peers
        peers.own_target = target
        self.streams = EventStreams()
        self.kv_log = KVLog()  # what schedulers are told of the pool
        self.draining = False
        self.went_down = asyncio.Event()  # its engine is broken for good
        self._asyncio_loop = asyncio_loop
        self._has_engine = asyncio.Event()  # unset while it changes its role
        self._adopt(parts)

    def _adopt(self, parts: EngineParts) -> None:
        """Makes an engine's thread, not started yet, and what goes with the engine."""
        self.parts = parts
        self.identity = parts.identity
        self.counts = InstanceCounts(self.identity)
        self.limits = Limits(
            max_context_tokens=parts.engine.max_context_tokens,
            max_kv_tokens=parts.pool.num_hbm_blocks * parts.identity.block_size_tokens,
            max_prompt_bytes=self.peers.credentials.limits.max_prompt_bytes,
        )
        self.loop = EngineLoop(
            parts,
            name=f"engine-{parts.identity.instance}",
            deliver=lambda events: self._in_asyncio(lambda: self.streams.deliver(events)),
            step_failed=self._fail_all,
            between_steps=self._observe,
        )
        self._has_engine.set()
        self._snapshot = self._status()  # replaced by the engine thread
        self._snapshot_s = parts.clock.now_s()
        parts.pool.wake = self.loop.wake

    async def become(self, rebuild: Callable[[], Awaitable[EngineParts]]) -> None:
        """Ends this engine, which must be quiet, and goes on with the one that `rebuild` returns.

        Raises:
          Exception: what `rebuild` raises; the instance is down then.
        """
        self._has_engine.clear()
        await asyncio.to_thread(self.loop.stop)
        try:
            parts = await rebuild()
        except BaseException as error:
            self.loop.give_up(error)
            self.went_down.set()
            raise
        self.kv_log.restart()
        self._adopt(parts)
        self.loop.start()

    @property
    def has_engine(self) -> bool:
        """Whether there is one: not while this changes its role, nor once that has failed."""
        return self._has_engine.is_set()

    @property
    def state(self) -> State:
        """Whether it takes requests."""
        if self.loop.broken is not None:
            return State.DOWN
        return State.DRAINING if self.draining else State.SERVING

    @property
    def snapshot(self) -> pb.InstanceStatus:
        """The state a moment ago, without waiting for the engine thread."""
        status = pb.InstanceStatus()
        status.CopyFrom(self._snapshot)
        status.state = self.state
        return status

    async def status(self) -> pb.InstanceStatus:
        """Returns the state between two steps."""
        return await self.run(self._status)

    def readings(self) -> Iterator[Reading]:
        """Yields every series of its metrics."""
        yield from status_readings(self.snapshot)
        yield from self.counts.tally.readings()

    async def kv_snapshot(self) -> KVSnapshot:
        """Returns all that the pool holds; from now on `kv_log` goes on from there."""
        return await self.run(self._take_kv_snapshot)

    @contextlib.asynccontextmanager
    async def answering(self, method: str, context: Context) -> AsyncIterator[None]:
        """Ends a call of `method` with the right status, counts it and spans it."""
        async with answered_errors(context), self.counts.failures(method, context):
            with self.tracer.serve(SPANS[method], context) as span:
                span.set({"memserve.instance": str(self.identity.instance)})
                yield

    def refuse_unless_serving(self) -> None:
        """Does nothing while requests are taken.

        Raises:
          NoInstanceError: the instance drains or is down.
        """
        if self.state is not State.SERVING:
            raise NoInstanceError(f"instance {self.identity.instance} is {self.state}")

    async def run(self, command: Callable[[], _T]) -> _T:
        """Runs `command` on the engine thread and returns its result, or raises its error.

        Raises:
          NoInstanceError: there is no engine: the instance changes its role.
        """
        if not self.has_engine:
            raise NoInstanceError(f"instance {self.identity.instance} changes its role")
        return await asyncio.wrap_future(self.loop.call(command))

    def prefilled(self, arrival_s: float, queue_s: float, now_s: float) -> None:
        """Notes a prompt computed here, in the task of its call; its first token is there now."""
        self.counts.prefilled(arrival_s, queue_s, now_s)
        came_s = now_s - arrival_s
        self.tracer.past("queue", {}, began_s=came_s, ended_s=came_s - queue_s)
        self.tracer.past("compute", {}, began_s=came_s - queue_s)

    def cancel(self, request_id: RequestId) -> None:
        """Ends a request in any phase; its blocks are free within one step."""
        self.loop.post(lambda: self.parts.engine.cancel(request_id))

    async def quiesce(self) -> None:
        """Returns when no request, transfer or lease is left."""
        await self._has_engine.wait()
        await asyncio.wrap_future(self.loop.when_quiet())

    def _status(self) -> pb.InstanceStatus:
        return status_message(
            self.parts,
            state=self.state,
            target=self.target,
            metrics_target=self._metrics_target,
        )

    def _observe(self, will_wait: bool) -> None:
        now_s = self.parts.clock.now_s()
        if will_wait or now_s - self._snapshot_s >= SNAPSHOT_S:
            self._snapshot, self._snapshot_s = self._status(), now_s
            self._log_kv(self.parts.pool.kv_events())

    def _take_kv_snapshot(self) -> KVSnapshot:
        events, snapshot = self.parts.pool.kv_snapshot()
        self._log_kv(events)
        return snapshot

    def _log_kv(self, events: KVEvents) -> None:
        if events.events:
            self._in_asyncio(lambda: self.kv_log.append(events))

    def _in_asyncio(self, callback: Callable[[], None]) -> None:
        # RuntimeError: the asyncio loop is closed, so nobody waits for events any more.
        with contextlib.suppress(RuntimeError):
            self._asyncio_loop.call_soon_threadsafe(callback)

    def _fail_all(self, error: Exception) -> None:
        """Ends all that is in flight: nobody can tell which request a failed step spoilt."""
        reason = MemServeError(f"instance {self.identity.instance}: a step failed: {error}")
        for request_id in self.streams.request_ids:
            self.parts.engine.cancel(request_id)
        self._in_asyncio(lambda: self.streams.fail_all(reason))
        if self.loop.broken is not None:
            self._in_asyncio(self.went_down.set)
