"""One instance as a process of its own, registered with schedulers elsewhere."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.config import Config, to_mapping
from memserve_jax.core.credentials import Credentials, credentials_of
from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import Role
from memserve_jax.engine.intake import context_limit
from memserve_jax.launch.build import (
    Progress,
    Recipe,
    build_parts,
    load_bundles,
    open_recipe,
    read_model_facts,
)
from memserve_jax.launch.links import Links, Situation, check_transports, make_links
from memserve_jax.launch.new_role import NewRole
from memserve_jax.launch.topology import ClusterPlan, plan_instance
from memserve_jax.launch.warm_up import warm_up
from memserve_jax.parallel.job import Job, leave_job
from memserve_jax.proto.server import check_address
from memserve_jax.serving.engine_parts import EngineParts
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.server import InstanceServer
from memserve_jax.telemetry.process_telemetry import ProcessTelemetry, open_telemetry

_log = logging.getLogger(__name__)


class SoloInstance:
    """An instance alone in its process. Lives in the asyncio loop."""

    def __init__(
        self, server: InstanceServer, roles: NewRole, telemetry: ProcessTelemetry, job: Job | None
    ):
        """For `launch` alone."""
        self.server = server
        self._telemetry = telemetry
        self._roles = roles
        self._job = job

    @classmethod
    async def launch(
        cls,
        config: Config,
        *,
        name: str,
        role: Role,
        schedulers: Sequence[str],
        progress: Progress | None = None,
        job: Job | None = None,
    ) -> "SoloInstance":
        """Returns an instance that serves and is registered with every scheduler.

        Args:
          config: `model`, `mempool`, `engine`, `tp`, `caching`, `host` and `port` are used; of
            `instances` the one called `name`, if it is there.
          name: Of the instance.
          role: What it does.
          schedulers: HOST:PORT of each.
          progress: Told of every shape that is compiled at warm-up.
          job: To be joined before jax starts: returns after all its processes are there.

        Raises:
          ConfigError: a wrong value, too few devices, a port in use, a scheduler that refuses.
          CheckpointError: the model directory cannot be served.
        """
        plan = plan_instance(config, name=name, role=role)
        check_transports(config.mempool, job)
        facts = read_model_facts(config)
        context_limit(config.engine, facts.card)
        _log.info("config: %s", to_mapping(config))
        credentials = _checked(config, schedulers)
        async with contextlib.AsyncExitStack() as undo:
            telemetry = open_telemetry(config, name)
            undo.push_async_callback(telemetry.close)
            recipe = open_recipe(config, plan, facts, SystemClock(), job)
            peers = Peers(credentials)
            situation = Situation(
                section=config.mempool, clock=recipe.clock, host=config.host, job=job
            )
            links = make_links(role, peers, situation)
            undo.callback(links.close)
            parts = await _build(recipe, plan, links, progress)
            roles = NewRole(recipe, plan.instances[0], links, peers, situation)
            server = InstanceServer(
                parts,
                peers=peers,
                schedulers=schedulers,
                host=config.host,
                port=config.port,
                telemetry=telemetry,
                rebuild=roles if job is None else None,
            )
            undo.push_async_callback(server.stop, 0.0)
            await server.start()
            undo.pop_all()
            return cls(server, roles, telemetry, job)
        raise AssertionError("returned above")

    @property
    def target(self) -> str:
        """HOST:PORT."""
        return self.server.target

    async def ended(self) -> None:
        """Returns once a drain has left nothing to do.

        Raises:
          MemServeError: the engine is broken for good; another life may do better.
        """
        instance = self.server.instance
        ends = [
            asyncio.create_task(event.wait()) for event in (self.server.drained, instance.went_down)
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if not self.server.drained.is_set():
            name, error = instance.identity.instance, instance.loop.broken
            raise MemServeError(f"instance {name}: its engine is broken: {error}")

    async def stop(self, grace_s: float) -> None:
        """Deregisters, gives requests `grace_s` to end, frees everything.

        One that was drained out of a job ends its process here: jax would wait for the others to
        leave too, and abort when they do not.
        """
        await self.server.stop(grace_s)
        await self._telemetry.close()
        await asyncio.to_thread(self._roles.links.close)
        if self._job is not None and self.server.drained.is_set():
            leave_job()


async def _build(
    recipe: Recipe, plan: ClusterPlan, links: Links, progress: Progress | None
) -> EngineParts:
    """Returns the engine of the one instance of `plan`, warm."""
    bundles = await asyncio.to_thread(load_bundles, recipe, plan.instances)
    (instance,) = plan.instances
    weights = bundles[instance.devices]
    parts = await asyncio.to_thread(
        build_parts, recipe, instance, weights, num_sharing=1, links=links
    )
    if recipe.config.engine.warm_up:
        await warm_up([parts], progress)
    return parts


def _checked(config: Config, schedulers: Sequence[str]) -> Credentials:
    """Returns the credentials, once every address is found good: before what takes long."""
    credentials = credentials_of(config.security)
    check_address(config.host, config.port, credentials)
    for target in schedulers:
        credentials.check_target(target)
    return credentials
