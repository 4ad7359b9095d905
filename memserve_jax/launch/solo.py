"""One instance as a process of its own, registered with schedulers elsewhere."""

import asyncio
import dataclasses
import logging
from collections.abc import Sequence

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.config import Config, InstanceSection, to_mapping
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.types import Role
from memserve_jax.engine.intake import context_limit
from memserve_jax.launch.build import (
    Progress,
    build_parts,
    load_bundles,
    open_recipe,
    read_model_facts,
)
from memserve_jax.launch.topology import plan_cluster
from memserve_jax.launch.warm_up import warm_up
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.server import InstanceServer

_log = logging.getLogger(__name__)


class SoloInstance:
    """An instance alone in its process. Lives in the asyncio loop."""

    def __init__(self, server: InstanceServer):
        """For `launch` alone."""
        self._server = server

    @classmethod
    async def launch(
        cls,
        config: Config,
        *,
        name: str,
        schedulers: Sequence[str],
        progress: Progress | None = None,
    ) -> "SoloInstance":
        """Returns a colocated instance that serves and is registered with every scheduler.

        Args:
          config: `model`, `mempool`, `engine`, `tp`, `caching`, `host` and `port` are used.
          name: Of the instance.
          schedulers: HOST:PORT of each.
          progress: Told of every shape that is compiled at warm-up.

        Raises:
          ConfigError: a wrong value, too few devices, a port in use, a scheduler that refuses.
          CheckpointError: the model directory cannot be served.
        """
        section = _section(name, config.tp)
        config = dataclasses.replace(config, instances=(section,))
        plan = plan_cluster(config)
        facts = read_model_facts(config)
        context_limit(config.engine, facts.card)
        _log.info("config: %s", to_mapping(config))
        recipe = open_recipe(config, plan, facts, SystemClock())
        bundles = await asyncio.to_thread(load_bundles, recipe, plan.instances)
        (instance,) = plan.instances
        bundle = bundles[instance.devices]
        parts = await asyncio.to_thread(build_parts, recipe, instance, bundle, num_sharing=1)
        if config.engine.warm_up:
            await warm_up([parts], progress)
        server = InstanceServer(
            parts, peers=Peers(), schedulers=schedulers, host=config.host, port=config.port
        )
        solo = cls(server)
        try:
            await server.start()
        except BaseException:
            await solo.stop(0.0)
            raise
        return solo

    @property
    def target(self) -> str:
        """HOST:PORT."""
        return self._server.target

    async def drained(self) -> None:
        """Returns once a drain has left nothing to do."""
        await self._server.drained.wait()

    async def stop(self, grace_s: float) -> None:
        """Deregisters, gives requests `grace_s` to end, frees everything."""
        await self._server.stop(grace_s)


def _section(name: str, tp: int) -> InstanceSection:
    try:
        return InstanceSection(instance=name, role=Role.COLOCATED, tp=tp)
    except ValueError:  # pydantic's, whose text is many lines
        raise ConfigError(f"--name: got {name!r}, allowed: 1 to 64 of A-Z a-z 0-9 . _ -") from None
