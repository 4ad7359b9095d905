"""The gRPC server of one instance: from a built engine to a registered, serving instance."""

import asyncio
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Sequence

import grpc.aio

from memserve_jax.core.errors import RefusedError
from memserve_jax.core.types import CachingMode, Role
from memserve_jax.proto import memserve_pb2, memserve_pb2_grpc
from memserve_jax.proto.server import (
    ANY_HOST,
    Health,
    add_standard_services,
    address,
    bind,
    check_address,
    make_server,
)
from memserve_jax.serving.engine_parts import EngineParts, State
from memserve_jax.serving.generate import GenerateServicer
from memserve_jax.serving.instance import Instance
from memserve_jax.serving.instance_service import InstanceServicer
from memserve_jax.serving.kv_reports import KVReport
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.registration import Registration
from memserve_jax.telemetry.instance_metrics import INSTANCE_METRICS
from memserve_jax.telemetry.process_telemetry import SILENT, ProcessTelemetry

SETTLE_S = 5.0  # what cancelled requests and copies under way get before the pool is closed
LAST_WORDS_S = 1.0  # what the last messages get to reach their clients
FLUSH_PAUSE_S = 0.02  # before DISK is asked to take more of the cache

_log = logging.getLogger(__name__)


# From the parts there are, whose engine has stopped, to those of another role.
Rebuild = Callable[[EngineParts, Role, CachingMode], Awaitable[EngineParts]]


class InstanceServer:
    """One instance on the network. Lives in the asyncio loop; owns engine thread and pool."""

    def __init__(
        self,
        parts: EngineParts,
        *,
        peers: Peers,
        schedulers: Sequence[str],
        host: str = "127.0.0.1",
        port: int = 0,
        telemetry: ProcessTelemetry = SILENT,
        rebuild: Rebuild | None = None,
    ):
        """Binds the port; `start` does the rest.

        Args:
          parts: The engine, warmed up or not, and its pool: this server's from now on.
          peers: What the pool's `PeerChannel` looks addresses up in; has the credentials.
          schedulers: HOST:PORT of each.
          host: To listen on.
          port: To listen on; 0 picks a free one.
          telemetry: Where its metrics and spans go; not this server's to close.
          rebuild: Makes the engine of another role; None: this instance keeps the one it has.

        Raises:
          ConfigError: the port is in use, the host is not of this machine, or others could
            reach it in plain text.
        """
        check_address(host, port, peers.credentials)
        server = make_server(credentials=peers.credentials)
        bound = bind(server, host, port, peers.credentials)
        # Dropped at the end: a gRPC server must not outlive its asyncio loop, even as garbage.
        self._server: grpc.aio.Server | None = server
        self._peers = peers
        self.instance = Instance(
            parts,
            target=address(socket.gethostname() if host in ANY_HOST else host, bound),
            peers=peers,
            asyncio_loop=asyncio.get_running_loop(),
            telemetry=telemetry,
        )
        self._rebuild = rebuild
        self._changing = asyncio.Lock()  # held while there is no engine
        self._is_leaving = False
        self._telemetry = telemetry
        telemetry.show(INSTANCE_METRICS.values(), self.instance.readings)
        self._registration = Registration(
            schedulers,
            status=lambda: self.instance.snapshot,
            kv_report=lambda: KVReport(self.instance.kv_log, self.instance.kv_snapshot),
            peers_changed=lambda live: self.instance.loop.post(
                lambda: self.instance.parts.pool.peers_changed(live)
            ),
            credentials=peers.credentials,
        )
        self._health: Health | None = None
        self._ends_at_s = math.inf  # by the asyncio loop's clock: a `stop` takes no longer
        self.drained = asyncio.Event()  # the owner then calls `stop`

    @property
    def target(self) -> str:
        """HOST:PORT."""
        return self.instance.target

    async def start(self) -> None:
        """Serves, and returns once every scheduler knows of it."""
        server = self._server
        assert server is not None, "started after its end"
        services = memserve_pb2.DESCRIPTOR.services_by_name
        names = [services[name].full_name for name in ("GenerateService", "InstanceService")]
        self._health = await add_standard_services(server, names)
        memserve_pb2_grpc.add_GenerateServiceServicer_to_server(
            GenerateServicer(self.instance), server
        )
        memserve_pb2_grpc.add_InstanceServiceServicer_to_server(
            InstanceServicer(self.instance, drain=self.drain, set_role=self.set_role), server
        )
        self.instance.loop.start()
        await server.start()
        for name in names:
            await self._health.set(name, serving=True)
        self._registration.start()
        await self._registration.registered()
        _log.info("instance %s serves at %s", self.instance.identity.instance, self.target)

    async def drain(self, timeout_s: float) -> None:
        """Takes no more requests; returns when those there are have ended and the cache is on DISK.

        That takes DISK up to the end of `timeout_s`: what it has not got by then is lost.

        Raises:
          TimeoutError: they have not within `timeout_s`; the instance goes on draining.
        """
        self._is_leaving = True
        await self._finish(timeout_s)
        self.drained.set()

    async def set_role(self, role: Role, caching: CachingMode, timeout_s: float) -> None:
        """Finishes as for a drain, then serves on in `role`, in this process, with these weights.

        What HBM and HOST hold is dropped: it is KV for another kind of cache, of an earlier life.
        DISK keeps what it has.

        Raises:
          RefusedError: this instance cannot, or is about to end; nothing changed.
          TimeoutError: requests have not ended within `timeout_s`; it goes on as before.
          MemServeError: no engine could be made for the role; the instance is down.
        """
        identity, rebuild = self.instance.identity, self._rebuild
        if (identity.role, identity.caching) == (role, caching):
            return
        if rebuild is None or self.instance.draining:
            why = "is draining" if rebuild else "is part of a job, which has its roles for good"
            raise RefusedError(f"role: instance {identity.instance} {why}")
        try:
            await self._finish(timeout_s)
            # Whoever asked may hang up: half a change would be no instance at all.
            await asyncio.shield(asyncio.ensure_future(self._become(rebuild, role, caching)))
        finally:
            self.instance.draining = self._is_leaving
        await self._registration.renew()

    async def _become(self, rebuild: Rebuild, role: Role, caching: CachingMode) -> None:
        name, started_s = self.instance.identity.instance, asyncio.get_running_loop().time()
        async with self._changing:
            parts = self.instance.parts
            await self.instance.become(lambda: rebuild(parts, role, caching))
        took_s = asyncio.get_running_loop().time() - started_s
        _log.info("instance %s is a %s one now, after %.1f s", name, role, took_s)

    async def _finish(self, timeout_s: float) -> None:
        """Takes no more requests; returns when those there are have ended and DISK has the cache.

        Raises as `drain`.
        """
        self.instance.draining = True
        ends_at_s = asyncio.get_running_loop().time() + timeout_s
        await self._registration.beat()
        name = self.instance.identity.instance
        try:
            async with asyncio.timeout(timeout_s):
                await self.instance.quiesce()
        except TimeoutError:
            raise TimeoutError(f"instance {name}: still has work after {timeout_s:g} s") from None
        await self._flush(ends_at_s)

    async def kill(self) -> None:
        """Ends as a crash would: nobody is told, calls break off. Memory is freed all the same."""
        self._registration.forsake()
        if self._server is not None:
            await self._server.stop(None)
        await self._end()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Takes no more requests, gives those there are `grace_s` seconds, then ends them and all.

        What is left of that time is for the cache to be written to DISK, if there is such a tier.
        A second call meanwhile only shortens the grace.
        """
        self.hasten(grace_s)
        self.instance.draining = self._is_leaving = True
        async with self._changing:
            pass  # it is an instance again, or down
        if grace_s > 0 and not await self._is_quiet_within(0.0):
            await self._registration.beat()
            await self._is_quiet_within(grace_s)
        await self._registration.stop()
        if self._health is not None:
            await self._health.shut_down()
        if self._server is not None:
            await self._server.stop(min(grace_s, LAST_WORDS_S))
        await self._is_quiet_within(SETTLE_S)
        await self._flush(math.inf)
        await self._end()

    def hasten(self, grace_s: float) -> None:
        """Has the cache written to DISK for at most `grace_s` seconds from now on."""
        ends_at_s = asyncio.get_running_loop().time() + grace_s
        self._ends_at_s = min(self._ends_at_s, ends_at_s)

    async def _flush(self, ends_at_s: float) -> None:
        """Writes the cache to DISK until `ends_at_s`, or until this is to end."""
        loop, parts = asyncio.get_running_loop(), self.instance.parts
        is_done = False
        while not is_done and loop.time() < min(ends_at_s, self._ends_at_s):
            if self._server is None or not self.instance.loop.is_alive:
                return  # another call has ended it
            if self.instance.state is State.DOWN:
                return  # its pages may be gone
            is_done = await self.instance.run(parts.pool.flush)
            if not is_done:
                await asyncio.sleep(FLUSH_PAUSE_S)
        if not is_done:
            _log.info("instance %s: not all of the cache is on DISK", parts.identity.instance)

    async def _is_quiet_within(self, timeout_s: float) -> bool:
        """Waits until nothing is in flight, and returns whether that was so in time."""
        if not self.instance.loop.is_alive or self.instance.state is State.DOWN:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self.instance.quiesce()
        except TimeoutError:
            return False
        return True

    async def _end(self) -> None:
        if self._server is None:
            return
        self._server = None
        self._telemetry.hide(self.instance.readings)
        await asyncio.to_thread(self.instance.loop.stop)
        await self._peers.close()
        if self.instance.has_engine:
            self.instance.parts.pool.close()
