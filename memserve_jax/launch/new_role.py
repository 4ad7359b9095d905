"""Another role for an instance that serves: a new engine and pool on the weights there are."""

import asyncio
import dataclasses

import jax

from memserve_jax.core.types import CachingMode, Role
from memserve_jax.launch.build import Recipe, build_parts
from memserve_jax.launch.links import Links, Situation, make_links
from memserve_jax.launch.topology import InstancePlan
from memserve_jax.launch.warm_up import warm_up
from memserve_jax.serving.engine_parts import EngineParts
from memserve_jax.serving.peers import Peers


class NewRole:
    """Rebuilds one instance. Call it in the asyncio loop of its peers.

    Attributes:
      links: Of the pool there is now; the owner closes them at the end.
    """

    def __init__(
        self, recipe: Recipe, plan: InstancePlan, links: Links, peers: Peers, situation: Situation
    ):
        """Rebuilds nothing yet.

        Args:
          recipe: Of the process.
          plan: Of the instance, as it was started.
          links: Of its pool.
          peers: Where the other instances are.
          situation: Where this one is.
        """
        self.links = links
        self._recipe = recipe
        self._plan = plan
        self._peers = peers
        self._situation = situation

    async def __call__(self, old: EngineParts, role: Role, caching: CachingMode) -> EngineParts:
        """Returns an engine for `role`, warm, with an empty pool of as many blocks.

        Args:
          old: What there is; its engine has stopped. Ends here: its memory is needed.
          role: The new one.
          caching: Fits `role`.

        Raises:
          ConfigError: no transport for the role can be had, or no memory.
        """
        num_blocks, steps = old.pool.num_hbm_blocks, old.engine.steps
        old.pool.close()
        await asyncio.to_thread(self.links.close)
        for page in jax.tree.leaves(old.pool.pages):
            page.delete()
        self.links = make_links(role, self._peers, self._situation)
        config = self._recipe.config
        mempool = dataclasses.replace(config.mempool, hbm_blocks=num_blocks)
        recipe = dataclasses.replace(
            self._recipe, caching=caching, config=dataclasses.replace(config, mempool=mempool)
        )
        parts = await asyncio.to_thread(
            build_parts,
            recipe,
            dataclasses.replace(self._plan, role=role),
            steps.bundle,
            num_sharing=1,
            links=self.links,
            steps=steps,
        )
        if config.engine.warm_up:
            await warm_up([parts], None)
        return parts
