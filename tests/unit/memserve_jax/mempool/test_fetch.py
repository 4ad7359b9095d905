"""Fetching from a peer: what comes, and that nothing stays behind when it does not."""

import numpy as np
import pytest

from memserve_jax.core.clock import ManualClock
from tests.helpers.peers import Network
from tests.helpers.pools import cache, compute, kv_of, make_pool, read_kv

PROMPT = list(range(9))  # 4 whole blocks of 2; the last token is computed in any case
TIMEOUT_S = 10.0


@pytest.fixture
def network():
    network = Network(ManualClock())
    make_pool("p0", network=network, host_blocks=4)
    make_pool("p1", devices=[1], network=network, host_blocks=4)
    return network


def begin(network, token_ids=PROMPT, **options):
    options.setdefault("timeout_s", TIMEOUT_S)
    return network.pools["p0"].fetch(token_ids, "p1", **options)


def assert_clean(network):
    network.run()
    for pool in network.pools.values():
        pool.check()
        assert pool.num_leased == 0
        assert pool.next_deadline_s is None


def held(pool, token_ids=PROMPT, salt="") -> np.ndarray:
    with pool.match(token_ids, salt=salt) as lease:
        return read_kv(pool, lease)


def test_what_the_peer_holds_beyond_is_here_then(network):
    mine, theirs = network.pools["p0"], network.pools["p1"]
    cache(mine, PROMPT[:4])
    cache(theirs, PROMPT[:8])
    fetch = begin(network)
    assert not fetch.is_done
    assert mine.num_leased == 2, "the blocks before must stay meanwhile"
    network.run()
    assert fetch.is_done and fetch.error is None
    assert (fetch.num_blocks, fetch.num_bytes) == (2, 2 * mine.layout.block_bytes)
    assert mine.counters.blocks_fetched == 2
    assert theirs.counters.blocks_sent == 2
    np.testing.assert_array_equal(held(mine), kv_of(mine.layout, PROMPT[:8]))
    assert_clean(network)


def test_blocks_that_the_peer_has_in_host_memory_come_too(network):
    theirs = network.pools["p1"]
    cache(theirs, PROMPT[:8])
    assert theirs.swap_out(4) == 4
    fetch = begin(network)
    network.run()
    assert (fetch.num_blocks, fetch.error) == (4, None)
    np.testing.assert_array_equal(held(network.pools["p0"]), kv_of(theirs.layout, PROMPT[:8]))
    assert_clean(network)


def test_a_peer_that_holds_no_more_sends_nothing(network):
    cache(network.pools["p0"], PROMPT[:4])
    cache(network.pools["p1"], PROMPT[:4])
    fetch = begin(network)
    network.run()
    assert (fetch.is_done, fetch.num_blocks, fetch.error) == (True, 0, None)
    assert "bytes" not in network.delivered
    assert_clean(network)


def test_another_salt_is_another_prefix(network):
    cache(network.pools["p1"], PROMPT[:8], salt="theirs")
    fetch = begin(network, salt="mine")
    network.run()
    assert fetch.num_blocks == 0
    assert_clean(network)


def test_no_answer_in_time_is_a_failure(network):
    cache(network.pools["p1"], PROMPT[:8])
    fetch = begin(network)
    network.drop()
    network.clock.advance(TIMEOUT_S)
    network.run()
    assert fetch.is_done
    assert "p1 did not send in time" in str(fetch.error)
    assert network.pools["p0"].counters.fetches_failed == 1
    assert_clean(network)


def test_a_peer_that_dies_is_not_waited_for(network):
    network.pools["p0"].peers_changed({"p0": 1, "p1": 1})
    cache(network.pools["p1"], PROMPT[:8])
    fetch = begin(network)
    network.deliver()  # the peer has begun to send
    network.pools["p0"].peers_changed({"p0": 1})
    assert fetch.is_done and "p1 has gone" in str(fetch.error)
    network.leave("p1")
    network.run()
    network.pools["p0"].check()
    assert network.pools["p0"].num_leased == 0


def test_a_later_life_of_the_owner_refuses(network):
    network.pools["p0"].peers_changed({"p0": 1, "p1": 7})
    cache(network.pools["p1"], PROMPT[:8])
    fetch = begin(network)
    network.run()
    assert "epoch 1, not 7" in str(fetch.error)
    assert_clean(network)


def test_giving_up_leaves_nothing(network):
    cache(network.pools["p0"], PROMPT[:4])
    cache(network.pools["p1"], PROMPT[:8])
    fetch = begin(network)
    fetch.cancel()
    assert fetch.is_done and network.pools["p0"].num_leased == 0
    network.run()
    assert_clean(network)


def test_a_requester_short_of_memory_is_not_sent_to(network):
    mine = network.pools["p0"]
    cache(network.pools["p1"], PROMPT[:8])
    with compute(mine, list(range(100, 114))):  # 7 of 8 blocks are in use
        fetch = begin(network)
        network.run()
        assert "no memory for 4 blocks" in str(fetch.error)
    assert_clean(network)


def test_a_pool_without_peers_cannot_fetch():
    pool = make_pool("p0")
    fetch = pool.fetch(PROMPT, "p1", timeout_s=1.0)
    pool.poll()
    assert fetch.is_done and "no control channel" in str(fetch.error)
