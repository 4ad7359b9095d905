"""The owner's side of fetches: whom it refuses, and what it gives back."""

import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.mempool.control import FetchAnswer, FetchCall
from tests.helpers.peers import Network
from tests.helpers.pools import cache, make_pool

PROMPT = tuple(range(8))


@pytest.fixture
def network():
    network = Network(ManualClock())
    make_pool("p0", network=network)
    make_pool("p1", devices=[1], network=network)
    cache(network.pools["p1"], PROMPT)
    return network


def call_of(**changes) -> FetchCall:
    values = {
        "requester": "p0",
        "requester_epoch": 1,
        "owner_epoch": None,
        "token_ids": PROMPT,
        "first_block": 0,
        "timeout_s": 5.0,
    }
    return FetchCall(**(values | changes))


def ask(network, **changes):
    answers = []
    transfer = network.pools["p1"].serve_fetch(call_of(**changes), answers.append)
    network.run()
    return transfer, answers


def test_what_is_held_is_sent_once(network):
    transfer, (answer,) = ask(network)
    assert transfer is not None and transfer.is_ended
    assert answer == FetchAnswer(4, 4 * network.pools["p1"].layout.block_bytes)


@pytest.mark.parametrize("first_block", [4, 5, 1000])
def test_nothing_beyond_what_the_requester_has(network, first_block):
    transfer, answers = ask(network, first_block=first_block)
    assert transfer is None
    assert answers == [FetchAnswer(0, 0)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"owner_epoch": 9}, "p1 is in epoch 1, not 9"),
        ({"requester": "p1"}, "p1 cannot fetch from itself"),
    ],
)
def test_calls_that_mean_somebody_else_are_refused(network, changes, said):
    transfer, (answer,) = ask(network, **changes)
    assert transfer is None
    assert said in str(answer)


def test_an_earlier_life_of_the_requester_is_refused(network):
    network.pools["p1"].peers_changed({"p0": 5, "p1": 1})
    _, (answer,) = ask(network)
    assert "p0 epoch 1 is over" in str(answer)


def test_a_requester_that_lost_its_blocks_refuses_the_rest(network):
    _, (answer,) = ask(network, first_block=2)  # p0 holds none of them
    assert "holds 0 of 2 blocks before" in str(answer)
    for pool in network.pools.values():
        pool.check()
        assert pool.num_leased == 0


def test_giving_up_ends_the_transfer(network):
    answers = []
    owner = network.pools["p1"]
    transfer = owner.serve_fetch(call_of(), answers.append)
    owner.cancel(transfer, "the peer gave up")
    network.run()
    assert "the peer gave up" in str(answers[0])
    assert owner.num_leased == 0 and network.pools["p0"].num_leased == 0
