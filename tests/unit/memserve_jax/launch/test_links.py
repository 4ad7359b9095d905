"""Which transports an instance has follows from its role and from who shares its process."""

import asyncio

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.types import Role
from memserve_jax.launch.links import NO_LINKS, Links, make_links
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from memserve_jax.serving.peers import Peers


def links_of(role: Role, fabric: LocalFabric | None) -> Links:
    async def make() -> Links:
        return make_links(role, Peers(), ManualClock(), fabric=fabric)

    return asyncio.run(make())


def test_a_colocated_instance_has_none():
    assert links_of(Role.COLOCATED, LocalFabric()) is NO_LINKS
    NO_LINKS.close()


def test_within_a_process_device_put_moves_kv():
    links = links_of(Role.PREFILL, LocalFabric())
    assert links.channel is not None
    (transport,) = links.transports
    assert isinstance(transport, DevicePutTransport)
    links.close()
