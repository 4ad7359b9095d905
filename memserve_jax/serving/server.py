"""The gRPC server of one instance: from a built engine to a registered, serving instance."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence

from memserve_jax.proto import memserve_pb2, memserve_pb2_grpc
from memserve_jax.proto.server import Health, add_standard_services, address, bind, make_server
from memserve_jax.serving.engine_parts import EngineParts, State
from memserve_jax.serving.generate import GenerateServicer
from memserve_jax.serving.instance import Instance
from memserve_jax.serving.instance_service import InstanceServicer
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.registration import Registration

SETTLE_S = 5.0  # what cancelled requests and copies under way get before the pool is closed
ANY_HOST = ("0.0.0.0", "::", "")

_log = logging.getLogger(__name__)


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
    ):
        """Binds the port; `start` does the rest.

        Args:
          parts: The engine, warmed up or not, and its pool: this server's from now on.
          peers: What the pool's `PeerChannel` looks addresses up in.
          schedulers: HOST:PORT of each.
          host: To listen on.
          port: To listen on; 0 picks a free one.

        Raises:
          ConfigError: the port is in use, or the host is not of this machine.
        """
        self._server = make_server()
        bound = bind(self._server, host, port)
        self._peers = peers
        self.instance = Instance(
            parts,
            target=address(socket.gethostname() if host in ANY_HOST else host, bound),
            peers=peers,
            asyncio_loop=asyncio.get_running_loop(),
        )
        self._registration = Registration(
            schedulers,
            status=lambda: self.instance.snapshot,
            peers_changed=lambda live: self.instance.loop.post(
                lambda: parts.pool.peers_changed(live)
            ),
        )
        self._health: Health | None = None
        self.drained = asyncio.Event()  # the owner then calls `stop`

    @property
    def target(self) -> str:
        """HOST:PORT."""
        return self.instance.target

    async def start(self) -> None:
        """Serves, and returns once every scheduler knows of it."""
        services = memserve_pb2.DESCRIPTOR.services_by_name
        names = [services[name].full_name for name in ("GenerateService", "InstanceService")]
        self._health = await add_standard_services(self._server, names)
        memserve_pb2_grpc.add_GenerateServiceServicer_to_server(
            GenerateServicer(self.instance), self._server
        )
        memserve_pb2_grpc.add_InstanceServiceServicer_to_server(
            InstanceServicer(self.instance, drain=self.drain), self._server
        )
        self.instance.loop.start()
        await self._server.start()
        for name in names:
            await self._health.set(name, serving=True)
        self._registration.start()
        await self._registration.registered()
        _log.info("instance %s serves at %s", self.instance.identity.instance, self.target)

    async def drain(self, timeout_s: float) -> None:
        """Takes no more requests, and returns when those there are have ended.

        Raises:
          TimeoutError: they have not within `timeout_s`; the instance goes on draining.
        """
        self.instance.draining = True
        await self._registration.beat()
        name = self.instance.identity.instance
        try:
            async with asyncio.timeout(timeout_s):
                await self.instance.quiesce()
        except TimeoutError:
            raise TimeoutError(f"instance {name}: still has work after {timeout_s:g} s") from None
        self.drained.set()

    async def kill(self) -> None:
        """Ends as a crash would: nobody is told, calls break off. Memory is freed all the same."""
        self._registration.forsake()
        await self._server.stop(None)
        await self._end()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Deregisters, gives calls under way `grace_s` seconds, ends the engine, frees memory."""
        self.instance.draining = True
        await self._registration.stop()
        if self._health is not None:
            await self._health.shut_down()
        await self._server.stop(grace_s)
        if self.instance.loop.is_alive and self.instance.state is not State.DOWN:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await self.instance.quiesce()
        await self._end()

    async def _end(self) -> None:
        await asyncio.to_thread(self.instance.loop.stop)
        await self._peers.close()
        self.instance.parts.pool.close()
