"""A whole cluster in one process: a scheduler and its instances, each on devices of its own.

Everything speaks gRPC over loopback, as between machines; only KV takes the short way, by
`device_put` from mesh to mesh.
"""

import asyncio
import logging

from memserve_jax.core.clock import Clock, SystemClock
from memserve_jax.core.config import Config, to_mapping
from memserve_jax.core.credentials import credentials_of
from memserve_jax.core.types import InstanceId, Role
from memserve_jax.engine.engine import Engine
from memserve_jax.engine.intake import context_limit
from memserve_jax.launch.build import (
    Progress,
    Recipe,
    build_parts,
    load_bundles,
    open_recipe,
    read_model_facts,
)
from memserve_jax.launch.links import Situation, check_transports, make_links
from memserve_jax.launch.new_role import NewRole
from memserve_jax.launch.topology import ClusterPlan, plan_cluster
from memserve_jax.launch.warm_up import warm_up
from memserve_jax.mempool.device_put import LocalFabric
from memserve_jax.mempool.pool import MemPool
from memserve_jax.proto.server import ANY_HOST, LOOPBACK, address
from memserve_jax.serving.engine_parts import EngineParts
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.server import InstanceServer
from memserve_jax.telemetry.process_telemetry import ProcessTelemetry, open_telemetry
from scheduler.server import SchedulerServer

_log = logging.getLogger(__name__)


class LocalCluster:
    """A running cluster. Lives in one asyncio loop; `launch` makes it, `stop` ends it."""

    def __init__(
        self,
        plan: ClusterPlan,
        scheduler: SchedulerServer,
        telemetry: ProcessTelemetry,
        *,
        host: str,
        port: int,
    ):
        """For `launch` alone."""
        self.telemetry = telemetry  # of all of them
        self.plan = plan
        self.scheduler = scheduler
        self.target = address(host, port)  # where clients reach the scheduler
        self._inner_target = address(LOOPBACK if host in ANY_HOST else host, port)
        self.instances: dict[InstanceId, InstanceServer] = {}
        self._fabric = LocalFabric()
        self._roles: list[NewRole] = []
        self._leaving: list[tuple[asyncio.Task[None], InstanceServer]] = []
        self._stopping = False

    @classmethod
    async def launch(
        cls, config: Config, *, progress: Progress | None = None, clock: Clock | None = None
    ) -> "LocalCluster":
        """Returns a cluster that serves requests.

        What can be wrong is found in this order: topology, model directory, port, devices,
        weights.

        Args:
          config: Of the whole cluster.
          progress: Told of every shape that is compiled at warm-up.
          clock: Of everything; None: the process's own.

        Raises:
          ConfigError: a wrong topology, caching mode or port, too few devices, no memory.
          CheckpointError: the model directory cannot be served.
        """
        clock = clock or SystemClock()
        plan = plan_cluster(config)
        check_transports(config.mempool, None)
        facts = read_model_facts(config)
        context_limit(config.engine, facts.card)
        _log.info("config: %s", to_mapping(config))
        telemetry = open_telemetry(config, "serve")
        scheduler = SchedulerServer(config, facts.card, facts.tokenizer, clock, telemetry=telemetry)
        try:
            port = await scheduler.start()
        except BaseException:
            await telemetry.close()
            raise
        cluster = cls(plan, scheduler, telemetry, host=config.host, port=port)
        try:
            recipe = open_recipe(config, plan, facts, clock)
            await cluster._start_instances(recipe, progress)
        except BaseException:
            await cluster.stop()
            raise
        return cluster

    @property
    def pools(self) -> dict[InstanceId, MemPool]:
        """The pool of each instance; look at it only while nothing is in flight."""
        return {name: server.instance.parts.pool for name, server in self.instances.items()}

    @property
    def engines(self) -> dict[InstanceId, Engine]:
        """The engine of each instance; look at it only while nothing is in flight."""
        return {name: server.instance.parts.engine for name, server in self.instances.items()}

    async def quiesce(self, timeout_s: float = 60.0) -> None:
        """Returns when no instance has a request, a transfer or a lease left.

        Raises:
          TimeoutError: something was left after `timeout_s`.
        """
        order = (Role.DECODE, Role.PREFILL, Role.COLOCATED)  # KV flows back from decode at the end
        servers = sorted(
            self.instances.values(),
            key=lambda server: order.index(server.instance.identity.role),
        )
        async with asyncio.timeout(timeout_s):
            for server in servers + servers:
                await server.instance.quiesce()

    async def kill(self, name: InstanceId) -> None:
        """Ends one instance as a crash would: for tests of what the others make of it."""
        self._fabric.unregister(name)
        await self.instances.pop(name).kill()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Takes no more requests, gives those there are `grace_s` to end, frees everything.

        A second call only shortens the grace of the first.
        """
        loop = asyncio.get_running_loop()
        ends_at_s = loop.time() + grace_s
        for server in self.instances.values():
            server.hasten(grace_s)
        await self.scheduler.stop(grace_s)
        if self._stopping:
            return
        self._stopping = True
        for task, server in self._leaving:
            if not server.drained.is_set():  # one that has begun to leave ends by itself
                task.cancel()
        await asyncio.gather(*(task for task, _ in self._leaving), return_exceptions=True)
        left_s = max(0.0, ends_at_s - loop.time())  # for the cache: it may have to go to DISK
        await asyncio.gather(*(server.stop(left_s) for server in self.instances.values()))
        self.instances.clear()
        for roles in self._roles:
            roles.links.close()
        self._roles.clear()
        await self.telemetry.close()

    async def _start_instances(self, recipe: Recipe, progress: Progress | None) -> None:
        bundles = await asyncio.to_thread(load_bundles, recipe, self.plan.instances)
        credentials = credentials_of(recipe.config.security)
        situation = Situation(
            section=recipe.config.mempool, clock=recipe.clock, host=LOOPBACK, fabric=self._fabric
        )
        built: list[tuple[EngineParts, Peers, NewRole]] = []
        for index, plan in enumerate(self.plan.instances):
            peers = Peers(credentials)
            links = make_links(plan.role, peers, situation)
            self._roles.append(NewRole(recipe, plan, links, peers, situation))
            waiting = self.plan.instances[index:]
            parts = await asyncio.to_thread(
                build_parts,
                recipe,
                plan,
                bundles[plan.devices],
                num_sharing=sum(bool(set(plan.devices) & set(each.devices)) for each in waiting),
                links=links,
            )
            built.append((parts, peers, self._roles[-1]))
        if recipe.config.engine.warm_up:
            await warm_up([parts for parts, _, _ in built], progress)
        for parts, peers, roles in built:
            server = InstanceServer(
                # Only the scheduler is for the world.
                parts,
                peers=peers,
                schedulers=[self._inner_target],
                host=LOOPBACK,
                telemetry=self.telemetry,
                rebuild=roles,
            )
            self.instances[parts.identity.instance] = server
            await server.start()
            leaving = asyncio.create_task(self._leave_when_drained(server))
            self._leaving.append((leaving, server))

    async def _leave_when_drained(self, server: InstanceServer) -> None:
        await server.drained.wait()
        name = server.instance.identity.instance
        del self.instances[name]
        self._fabric.unregister(name)
        await server.stop(grace_s=1.0)  # the answer to the drain call goes out first
