"""Transfers in parts: by cell, and fed by layer; each way they can end leaves nothing behind."""

import numpy as np
import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.stream import Ready
from memserve_jax.mempool.transfer import TransferPhase
from tests.helpers.peers import Network
from tests.helpers.pools import cache, compute, kv_of, make_pool, read_kv

LAYOUT = KVLayout(num_layers=3, num_kv_heads=1, block_size_tokens=2, head_dim=2, dtype="float32")
GROUPS = ((0, 2), (2, 1))
PROMPT = list(range(7))  # 3 whole blocks of 2, and a tail of 1
TIMEOUT_S = 10.0


@pytest.fixture
def network():
    network = Network(ManualClock())
    make_pool("p0", network=network, layout=LAYOUT)
    make_pool("d0", devices=[1], network=network, layout=LAYOUT)
    return network


class Prompt:
    """A stream of PROMPT from p0, and the lease an engine would hold meanwhile."""

    def __init__(self, network, *, insert=True, private=b"request", **terms):
        self.pool = network.pools["p0"]
        self.lease = compute(self.pool, PROMPT)
        self.stream = self.pool.stream(
            PROMPT, "d0", insert=insert, private=private, timeout_s=TIMEOUT_S, **terms
        )

    def feed(self, num_blocks, *, old=0, groups=GROUPS):
        for first, count in groups:
            ready = Ready(
                first_layer=first, num_layers=count, num_blocks=num_blocks, num_old_blocks=old
            )
            self.stream.feed(self.lease, ready)

    def finish(self):
        self.feed(4, old=2)
        self.stream.finish()
        self.lease.close()


def assert_clean(network):
    for pool in network.pools.values():
        pool.check()
        assert pool.num_leased == 0
        assert pool.next_deadline_s is None


def assert_arrived(network, arrival):
    receiver = network.pools["d0"]
    np.testing.assert_array_equal(read_kv(receiver, arrival.lease), kv_of(LAYOUT, PROMPT))
    arrival.lease.close()


def test_kv_leaves_as_it_is_fed_and_is_published_when_it_is_finished(network):
    prompt = Prompt(network)
    network.run()
    assert prompt.stream.is_answered
    assert prompt.stream.transfer.phase is TransferPhase.RESERVED
    prompt.feed(2, groups=GROUPS[:1])
    assert [message.kind for message in network.messages] == ["bytes"]
    assert prompt.stream.transfer.phase is TransferPhase.MOVING
    prompt.feed(2, groups=GROUPS[1:])
    prompt.feed(4, old=2)
    assert network.run() == []
    assert network.delivered.count("bytes") == 4
    assert network.pools["d0"].peek([*PROMPT, 0]) == 0
    assert "commit" not in network.delivered
    prompt.stream.finish()
    prompt.lease.close()
    (arrival,) = network.run()
    assert prompt.stream.transfer.phase is TransferPhase.DONE
    counters = network.pools["p0"].counters
    assert (counters.blocks_sent, counters.transfer_calls, counters.transfers_done) == (4, 4, 1)
    assert counters.bytes_sent == prompt.stream.transfer.num_bytes == 4 * LAYOUT.block_bytes
    assert_arrived(network, arrival)
    assert network.pools["d0"].peek([*PROMPT, 0]) == 6
    assert_clean(network)


def test_an_answer_may_come_after_everything_else(network):
    prompt = Prompt(network)
    prompt.feed(2)
    prompt.finish()
    assert network.pools["p0"].num_leased == 4  # the stream's own share
    (arrival,) = network.run()
    assert prompt.stream.transfer.num_calls == 1 + 2  # the first chunk as one, the last by group
    assert_arrived(network, arrival)
    assert_clean(network)


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_the_receiver_holds_is_not_sent(network, when):
    cache(network.pools["d0"], PROMPT[:4])
    prompt = Prompt(network)
    if when == "after":
        prompt.feed(4, old=1)
        network.run()
    else:
        network.run()
        prompt.feed(4, old=1)
    prompt.stream.finish()
    prompt.lease.close()
    (arrival,) = network.run()
    assert (arrival.num_blocks_moved, prompt.stream.transfer.num_blocks) == (2, 2)
    assert_arrived(network, arrival)
    assert_clean(network)


def test_a_receiver_with_everything_gets_a_commit_alone(network):
    whole = PROMPT[:6]
    cache(network.pools["d0"], whole)
    sender = network.pools["p0"]
    lease = compute(sender, whole)
    stream = sender.stream(whole, "d0", insert=True, timeout_s=TIMEOUT_S)
    network.run()
    for first, count in GROUPS:
        ready = Ready(first_layer=first, num_layers=count, num_blocks=3, num_old_blocks=0)
        stream.feed(lease, ready)
    stream.finish()
    lease.close()
    network.run()
    assert stream.transfer.phase is TransferPhase.DONE
    assert "bytes" not in network.delivered
    assert (sender.counters.transfer_s, sender.counters.transfer_calls) == (0.0, 0)
    assert_clean(network)


def asked(network, prompt):
    pass


def answered(network, prompt):
    network.run()


def fed_unanswered(network, prompt):
    prompt.feed(4)


def partly_sent(network, prompt):
    network.run()
    prompt.feed(2)
    network.deliver()


def all_sent(network, prompt):
    prompt.feed(4)
    network.run()


def committing(network, prompt):
    prompt.feed(4)
    prompt.stream.finish()
    network.run(until="commit")


STATES = [asked, answered, fed_unanswered, partly_sent, all_sent, committing]


@pytest.mark.parametrize("end", ["cancel", "deadline", "peer gone", "closed"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_a_stream_may_end_at_any_moment(network, state, end):
    prompt = Prompt(network)
    state(network, prompt)
    sender = network.pools["p0"]
    match end:
        case "cancel":
            sender.cancel(prompt.stream.transfer, "the first token ended the answer")
        case "deadline":
            network.clock.advance(TIMEOUT_S)
            network.poll()
        case "peer gone":
            sender.peers_changed({"d0": 1})
            sender.peers_changed({})
        case "closed":
            sender.close()
    assert prompt.stream.transfer.phase is TransferPhase.FAILED
    prompt.feed(4, groups=GROUPS if state in (asked, answered) else ())  # goes nowhere
    prompt.lease.close()
    arrivals = network.run()
    assert arrivals == [] or state is committing
    for arrival in arrivals:  # the commit was on its way already
        arrival.lease.close()
    network.clock.advance(TIMEOUT_S)
    network.run()
    assert_clean(network)
    assert sender.counters.transfers_failed == 1


def test_a_part_that_is_lost_fails_the_stream(network):
    prompt = Prompt(network)
    network.run()
    prompt.feed(4)
    network.fail(1)
    network.run()
    assert prompt.stream.transfer.phase is TransferPhase.FAILED
    prompt.lease.close()
    network.run()
    assert_clean(network)


def test_a_refusal_fails_the_stream(network):
    hog = network.pools["d0"].alloc_mem(8)
    prompt = Prompt(network, may_wait=False)
    prompt.feed(4)
    network.run()
    assert "no memory for 4 blocks" in str(prompt.stream.transfer.error)
    prompt.lease.close()
    hog.close()
    assert_clean(network)


def test_a_stream_needs_tokens_and_offers_them_all(network):
    sender = network.pools["p0"]
    with pytest.raises(ValueError, match="token_ids: got none"):
        sender.stream([], "d0", insert=True, timeout_s=TIMEOUT_S)
    with pytest.raises(ValueError, match="first_block: got 1, allowed for a stream: 0"):
        sender.stream(PROMPT, "d0", insert=True, first_block=1, timeout_s=TIMEOUT_S)


def test_without_a_way_there_a_stream_fails_by_name(network):
    network.pools["p0"]._peers.sender._routes._transports = ()
    prompt = Prompt(network)
    prompt.feed(4)
    network.run()
    assert "this pool has no transport" in str(prompt.stream.transfer.error)
    prompt.lease.close()
    assert_clean(network)


def test_by_cell_is_2l_calls_a_block(network):
    sender, receiver = network.pools["p0"], network.pools["d0"]
    cache(receiver, PROMPT[:2])
    with compute(sender, PROMPT) as lease:
        transfer = sender.transfer_with_insert(
            PROMPT, lease, "d0", by_cell=True, private=b"x", timeout_s=TIMEOUT_S
        )
    (arrival,) = network.run()
    assert transfer.num_calls == sender.counters.transfer_calls == 3 * 2 * LAYOUT.num_layers
    assert network.delivered.count("bytes") == transfer.num_calls
    assert transfer.num_blocks == sender.counters.blocks_sent == 3
    assert_arrived(network, arrival)
    assert_clean(network)
