"""Another role on the weights there are."""

import asyncio
import pathlib

import jax
import pytest

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.types import CachingMode, Role
from memserve_jax.launch.build import build_parts, load_bundles, open_recipe, read_model_facts
from memserve_jax.launch.links import Situation, make_links
from memserve_jax.launch.new_role import NewRole
from memserve_jax.launch.topology import plan_instance
from memserve_jax.mempool.device_put import LocalFabric
from memserve_jax.serving.peers import Peers
from tests.helpers.cluster import tiny_config
from tests.helpers.tiny import tiny_checkpoint


@pytest.mark.parametrize("role", [Role.DECODE, Role.COLOCATED])
def test_weights_steps_and_the_number_of_blocks_stay(role: Role, tmp_path: pathlib.Path):
    async def scenario() -> None:
        config = tiny_config(tiny_checkpoint(tmp_path / "tiny"), mempool={"hbm_blocks": 33})
        plan = plan_instance(config, name="p0", role=Role.PREFILL)
        (instance,) = plan.instances
        recipe = open_recipe(config, plan, read_model_facts(config), SystemClock())
        bundle = load_bundles(recipe, plan.instances)[instance.devices]
        situation = Situation(
            section=config.mempool, clock=recipe.clock, host="127.0.0.1", fabric=LocalFabric()
        )
        peers = Peers()
        links = make_links(Role.PREFILL, peers, situation)
        old = build_parts(recipe, instance, bundle, num_sharing=1, links=links)
        pages = jax.tree.leaves(old.pool.pages)
        roles = NewRole(recipe, instance, links, peers, situation)
        caching = CachingMode.ON if role is Role.COLOCATED else CachingMode.PD_BASIC
        new = await roles(old, role, caching)
        identity = new.identity
        assert (identity.instance, identity.role, identity.caching) == ("p0", role, caching)
        assert identity.epoch > old.identity.epoch
        assert (new.engine.role, new.engine.steps) == (role, old.engine.steps)
        assert new.pool.num_hbm_blocks == old.pool.num_hbm_blocks == 33
        assert all(page.is_deleted() for page in pages)
        assert bool(new.transports) == (role is not Role.COLOCATED)
        assert roles.links.transports == new.transports
        new.pool.check()
        new.pool.close()
        roles.links.close()
        await peers.close()

    asyncio.run(scenario())
