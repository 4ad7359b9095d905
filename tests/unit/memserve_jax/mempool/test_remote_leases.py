"""`alloc_mem` on peers, in HBM and in HOST, from the asker's side."""

import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.types import Tier
from memserve_jax.mempool.remote import RemotePhase
from tests.helpers.peers import Network
from tests.helpers.pools import compute, kv_of, make_pool, read_kv

TIMEOUT_S = 10.0
PROMPT = list(range(7))


@pytest.fixture
def network():
    network = Network(ManualClock())
    make_pool("p0", network=network, host_blocks=4)
    make_pool("d0", devices=[1], network=network, host_blocks=6)
    yield network
    for pool in network.pools.values():
        pool.check()
        assert (pool.num_leased, pool.next_deadline_s) == (0, None)


@pytest.mark.parametrize("tier", [Tier.HBM, Tier.HOST])
def test_blocks_of_either_tier_are_held_and_filled(network, tier):
    sender, receiver = network.pools["p0"], network.pools["d0"]
    remote = sender.alloc_mem(5, tier, on="d0", timeout_s=TIMEOUT_S)
    network.run()
    assert {address.tier for address in remote.blocks} == {tier}
    with compute(sender, PROMPT) as lease:
        transfer = sender.transfer(
            lease,
            "d0",
            token_ids=PROMPT,
            tier=tier,
            into=remote,
            private=b"x",
            timeout_s=TIMEOUT_S,
        )
    promised = {address.block for address in remote.blocks}
    (arrival,) = network.run()
    assert transfer.error is None and remote.phase is RemotePhase.ENDED
    assert {address.tier for address in arrival.lease.blocks} == {tier}
    assert len(promised) == 0  # an ended lease names none
    assert (read_kv(receiver, arrival.lease) == kv_of(receiver.layout, PROMPT)).all()
    arrival.lease.close()


def test_a_lease_serves_transfers_into_its_own_tier(network):
    sender = network.pools["p0"]
    remote = sender.alloc_mem(4, Tier.HOST, on="d0", timeout_s=TIMEOUT_S)
    network.run()
    with compute(sender, PROMPT) as lease, pytest.raises(ValueError, match="blocks in host"):
        sender.transfer(lease, "d0", token_ids=PROMPT, into=remote, timeout_s=TIMEOUT_S)
    assert remote.phase is RemotePhase.HELD
    network.clock.advance(TIMEOUT_S)
    network.run()
    assert remote.phase is RemotePhase.ENDED


def test_a_peer_without_the_tier_says_so(network):
    small = make_pool("d1", devices=[1], network=network)
    remote = network.pools["p0"].alloc_mem(1, Tier.HOST, on="d1", timeout_s=TIMEOUT_S)
    network.run()
    assert "d1 takes nothing into host" in str(remote.error)
    network.pools["p0"].peers_changed({"p0": 1, "d1": 1})
    held = network.pools["p0"].alloc_mem(1, on="d1", timeout_s=TIMEOUT_S)
    network.run()
    network.pools["p0"].peers_changed({"p0": 1, "d1": 2})
    assert held.phase is RemotePhase.ENDED
    network.run()
    assert small.num_leased == 0
