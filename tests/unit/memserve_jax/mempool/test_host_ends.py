"""KV from HBM or HOST to HBM or HOST: it lies where it was asked for, and is right."""

import dataclasses

import numpy as np
import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import Tier
from memserve_jax.mempool import memory
from memserve_jax.mempool.host_tier import ArenaStore, PinnedStore
from memserve_jax.mempool.part import Part
from tests.helpers.peers import Network
from tests.helpers.pools import TINY, cache, compute, kv_of, make_pool, read_kv

TIMEOUT_S = 10.0
PROMPT = list(range(9))  # 4 whole blocks of 2, and a tail of 1
HBM, HOST = Tier.HBM, Tier.HOST


@pytest.fixture(params=[ArenaStore, PinnedStore])
def network(request, monkeypatch):
    monkeypatch.setattr(memory, "make_host_store", request.param)
    network = Network(ManualClock())
    layout = dataclasses.replace(TINY, num_layers=2)
    make_pool("p0", network=network, layout=layout, hbm_blocks=10, host_blocks=8)
    make_pool("d0", devices=[1, 2], layout=layout, network=network, host_blocks=8)
    yield network
    for pool in network.pools.values():
        pool.check()
        assert (pool.num_leased, pool.next_deadline_s) == (0, None)


def send(network, source, target, token_ids=PROMPT, num_host=4, **terms):
    """Sends a prompt whose last `num_host` blocks are in HOST if that is the source."""
    sender = network.pools["p0"]
    if source is HBM:
        lease = compute(sender, token_ids)
    else:
        cache(sender, token_ids)
        sender.swap_out(num_host)
        lease = sender.match_whole(token_ids)
        token_ids = token_ids[: 2 * len(lease)]
        assert sum(address.tier is HOST for address in lease.blocks) == num_host
    terms = {"tier": target, "timeout_s": TIMEOUT_S, "private": b"x"} | terms
    transfer = sender.transfer_with_insert(token_ids, lease, "d0", **terms)
    lease.close()
    return transfer, token_ids


@pytest.mark.parametrize("source", [HBM, HOST])
@pytest.mark.parametrize("target", [HBM, HOST])
def test_every_pair(network, source, target):
    transfer, token_ids = send(network, source, target)
    (arrival,) = network.run()
    receiver = network.pools["d0"]
    assert (transfer.error, transfer.num_calls) == (None, 1)
    assert {address.tier for address in arrival.lease.blocks} == {target}
    kv = kv_of(receiver.layout, token_ids)
    np.testing.assert_array_equal(read_kv(receiver, arrival.lease), kv)
    receiver.swap_in(arrival.lease)
    np.testing.assert_array_equal(read_kv(receiver, arrival.lease), kv)
    arrival.lease.close()
    with receiver.match(PROMPT) as found:
        assert found.num_tokens == 8
        np.testing.assert_array_equal(read_kv(receiver, found), kv[:4])


def test_what_lies_in_both_tiers_travels_in_two_parts(network):
    transfer, token_ids = send(network, HOST, HBM, num_host=1)
    (arrival,) = network.run()
    receiver = network.pools["d0"]
    assert (transfer.num_blocks, transfer.num_calls) == (4, 2)
    assert network.delivered.count("bytes") == 2
    kv = kv_of(receiver.layout, token_ids)
    np.testing.assert_array_equal(read_kv(receiver, arrival.lease), kv)
    arrival.lease.close()


def test_host_blocks_follow_what_the_receiver_holds_in_hbm(network):
    receiver = network.pools["d0"]
    cache(receiver, PROMPT[:4])
    transfer, _ = send(network, HBM, HOST)
    (arrival,) = network.run()
    assert (transfer.num_blocks, transfer.error) == (3, None)
    assert [address.tier for address in arrival.lease.blocks] == [HBM, HBM, HOST, HOST, HOST]
    receiver.check()
    assert receiver.peek(PROMPT) == 8
    arrival.lease.close()
    with receiver.match(PROMPT) as found:
        receiver.swap_in(found)
        kv = kv_of(receiver.layout, PROMPT)[:4]
        np.testing.assert_array_equal(read_kv(receiver, found), kv)


def test_a_prefix_indexed_meanwhile_stays_leased_with_what_follows(network):
    receiver = network.pools["d0"]
    send(network, HBM, HOST)
    network.run(until="commit")
    cache(receiver, PROMPT[:4])
    (arrival,) = network.run()
    receiver.check()
    assert receiver.peek(PROMPT) == 8
    receiver.swap_out(2)
    receiver.check()
    arrival.lease.close()


def test_host_takes_no_more_than_it_has(network):
    receiver = network.pools["d0"]
    with receiver.alloc_mem(4, HOST):
        transfer, _ = send(network, HBM, HOST, may_wait=False)
        network.run()
        assert "no memory for 5 blocks now" in str(transfer.error)
        waiting, _ = send(network, HBM, HOST)
        assert network.run() == []
    (arrival,) = network.run()
    arrival.lease.close()
    assert waiting.error is None
    sender = network.pools["p0"]
    with compute(sender, list(range(18))) as lease:
        refused = sender.transfer(
            lease, "d0", token_ids=list(range(18)), tier=HOST, timeout_s=TIMEOUT_S
        )
    network.run()
    assert "wanted 9 blocks in host and 0 beside in hbm, 8 and 8 in all" in str(refused.error)


def test_a_transfer_in_layers_lands_whole(network):
    """As streaming sends do it: what goes to HOST layer by layer is stored block by block."""
    receiver, sender = network.pools["d0"], network.pools["p0"]
    transfer, _ = send(network, HBM, HOST)
    network.run(until="bytes")
    kv = kv_of(receiver.layout, PROMPT)
    port = receiver.port
    ticket = port._inbound[transfer.id].ticket
    parts = [Part(0, 2, 0, 2), Part(2, 3, 1, 1), Part(2, 3, 0, 1, 1, 1), Part(2, 3, 0, 1, 0, 1)]
    for part in parts:
        port.admits(transfer.id, part, ticket)
        layers = slice(part.first_layer, part.first_layer + part.num_layers)
        sides = slice(part.first_side, part.first_side + part.num_sides)
        rows = kv[part.first_block : part.first_block + part.num_blocks, layers, sides]
        port.deliver(transfer.id, part, rows)
        assert network.poll() == []
    with pytest.raises(TransferFailedError, match="admitted before"):
        port.admits(transfer.id, parts[0], ticket)
    commits = []
    receiver.commit(transfer.id, commits.append)
    (arrival,) = network.poll()
    assert commits == [None]
    np.testing.assert_array_equal(read_kv(receiver, arrival.lease), kv)
    arrival.lease.close()
    sender.cancel(transfer, "the test sent the bytes itself")
    network.run()
