"""The sender's side: each way a transfer can end, and what it leaves behind: nothing."""

from concurrent.futures import Future

import numpy as np
import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import OutOfBlocksError, StaleAddressError, TransferFailedError
from memserve_jax.core.types import Tier
from memserve_jax.mempool.remote import RemotePhase
from memserve_jax.mempool.transfer import TransferPhase
from tests.helpers.peers import Network, NetworkTransport
from tests.helpers.pools import cache, compute, kv_of, make_pool, read_kv

PROMPT = list(range(7))  # 3 whole blocks of 2, and a tail of 1
TIMEOUT_S = 10.0


@pytest.fixture
def network():
    network = Network(ManualClock())
    make_pool("p0", network=network)
    make_pool("d0", devices=[1], network=network)
    return network


def start(network, token_ids=PROMPT, *, insert=False, **terms):
    sender = network.pools["p0"]
    terms.setdefault("timeout_s", TIMEOUT_S)
    with compute(sender, token_ids) as lease:
        if insert:
            return sender.transfer_with_insert(token_ids, lease, "d0", **terms)
        return sender.transfer(lease, "d0", token_ids=token_ids, **terms)


def assert_clean(network):
    for pool in network.pools.values():
        pool.check()
        assert pool.num_leased == 0
        assert pool.next_deadline_s is None


def test_a_transfer_goes_through_its_phases(network):
    transfer = start(network, private=b"request")
    seen = [transfer.phase]
    ended = []
    transfer.on_done(ended.append)
    assert network.pools["p0"].num_leased == 4  # the pool's own share
    arrivals = []
    while network.messages:
        network.deliver()
        arrivals += network.poll()
        seen.append(transfer.phase)
    (arrival,) = arrivals
    assert list(dict.fromkeys(seen)) == ["pending", "moving", "committing", "done"]
    assert ended == [transfer]
    transfer.on_done(ended.append)
    assert ended == [transfer] * 2
    assert network.delivered == ["reserve", "reserved", "bytes", "sent", "commit", "committed"]
    assert (arrival.private, arrival.sender, arrival.num_tokens) == (b"request", "p0", 7)
    assert (arrival.num_blocks_moved, transfer.num_blocks, transfer.num_calls) == (4, 4, 1)
    receiver = network.pools["d0"]
    np.testing.assert_array_equal(read_kv(receiver, arrival.lease), kv_of(receiver.layout, PROMPT))
    assert receiver.peek(PROMPT) == 0  # without insert nobody can match it
    arrival.lease.close()
    counters = network.pools["p0"].counters
    assert (counters.blocks_sent, counters.transfer_calls, counters.transfers_done) == (4, 1, 1)
    assert counters.bytes_sent == 4 * receiver.layout.block_bytes == transfer.num_bytes
    assert_clean(network)


def test_only_what_the_receiver_lacks_is_sent(network):
    receiver = network.pools["d0"]
    cache(receiver, PROMPT[:4])
    transfer = start(network, insert=True, private=b"x")
    (arrival,) = network.run()
    assert (transfer.num_blocks, arrival.num_blocks_moved, len(arrival.lease)) == (2, 2, 4)
    np.testing.assert_array_equal(read_kv(receiver, arrival.lease), kv_of(receiver.layout, PROMPT))
    arrival.lease.close()
    assert receiver.peek(PROMPT) == 6
    assert receiver.counters.blocks_held == 2
    assert_clean(network)


def test_nothing_is_sent_to_who_has_all(network):
    cache(network.pools["d0"], PROMPT[:6])
    transfer = start(network, PROMPT[:6], insert=True, private=b"x")
    (arrival,) = network.run()
    assert network.delivered == ["reserve", "reserved", "commit", "committed"]
    assert (transfer.phase, transfer.num_blocks, transfer.num_calls) == ("done", 0, 0)
    assert len(arrival.lease.block_ids) == 3
    arrival.lease.close()
    assert_clean(network)


def test_a_send_back_starts_at_the_first_new_block_and_has_no_reader(network):
    receiver = network.pools["d0"]
    cache(receiver, PROMPT[:4])
    transfer = start(network, PROMPT[:6], insert=True, first_block=2, may_wait=False)
    assert network.run() == []
    assert (transfer.phase, transfer.num_blocks) == ("done", 1)
    with receiver.match(PROMPT) as found:
        assert found.num_tokens == 6
        np.testing.assert_array_equal(read_kv(receiver, found), kv_of(receiver.layout, PROMPT)[:3])
    assert_clean(network)


def test_a_send_back_without_its_beginning_is_refused(network):
    transfer = start(network, PROMPT[:6], insert=True, first_block=2)
    network.run()
    assert "refused: holds 0 of 2 blocks before" in str(transfer.error)
    assert_clean(network)


@pytest.mark.parametrize("kind", ["reserve", "reserved", "bytes", "sent", "commit", "committed"])
@pytest.mark.parametrize("how", ["drop", "fail"])
def test_a_lost_message_fails_the_transfer_and_frees_both_ends(network, kind, how):
    transfer = start(network, private=b"x")
    arrivals = network.run(until=kind)
    getattr(network, how)()
    arrivals += network.run()
    if how == "drop":
        assert not transfer.is_ended
        network.clock.advance(TIMEOUT_S)
    arrivals += network.run()
    assert transfer.phase is TransferPhase.FAILED
    assert isinstance(transfer.error, TransferFailedError)
    assert str(transfer.error).startswith(f"transfer {transfer.id} to d0, ")
    # Past its commit the receiver has the KV, whatever the sender learns.
    assert len(arrivals) == (kind == "committed")
    for arrival in arrivals:
        arrival.lease.close()
    assert_clean(network)


def test_an_abort_that_is_lost_costs_the_receiver_its_own_deadline_and_no_more(network):
    transfer = start(network, insert=True)
    network.run(until="bytes")
    network.pools["p0"].cancel(transfer, "not wanted any more")
    network.drop([message.kind for message in network.messages].index("abort"))
    network.run()
    receiver = network.pools["d0"]
    assert (network.pools["p0"].num_leased, receiver.num_leased) == (0, 4)
    network.clock.advance(TIMEOUT_S)
    network.run()
    assert receiver.peek(PROMPT) == 0
    assert_clean(network)


def test_nothing_is_published_of_a_transport_that_only_says_it_sent(network, monkeypatch):
    """The receiver counts what has landed: no answer comes from blocks that nobody wrote."""
    done: Future[None] = Future()
    done.set_result(None)
    monkeypatch.setattr(NetworkTransport, "send", lambda *_: done)
    transfer = start(network, insert=True, private=b"x")
    assert network.run() == []
    receiver = network.pools["d0"]
    assert (transfer.phase, receiver.peek(PROMPT)) == ("committing", 0)
    network.clock.advance(TIMEOUT_S)
    assert network.run() == []
    assert isinstance(transfer.error, TransferFailedError)
    assert (receiver.peek(PROMPT), receiver.counters.blocks_received) == (0, 0)
    assert_clean(network)


def test_blocks_on_offer_are_nobody_elses_until_they_have_been_read(network):
    sender = network.pools["p0"]
    transfer = start(network, private=b"x")  # whose caller has let go of them
    with pytest.raises(OutOfBlocksError), sender.alloc_mem(5):  # 8 in all, 4 on offer
        pass
    network.run(until="bytes")  # packed for the way
    assert sender.num_leased == 4
    arrivals = network.run()
    assert transfer.phase is TransferPhase.DONE
    with sender.alloc_mem(8), arrivals[0].lease as lease:
        receiver = network.pools["d0"]
        np.testing.assert_array_equal(read_kv(receiver, lease), kv_of(receiver.layout, PROMPT))
    assert_clean(network)


def test_a_cancelled_transfer_frees_both_ends(network):
    for kind in ["reserve", "reserved", "bytes", "sent", "commit"]:
        transfer = start(network, private=b"x")
        network.run(until=kind)
        network.pools["p0"].cancel(transfer, "the client hung up")
        network.pools["p0"].cancel(transfer, "twice")
        assert "the client hung up" in str(transfer.error)
        assert network.pools["p0"].num_leased == 0
        # Abort and what was on its way before it come in either order.
        if kind in ("bytes", "commit"):
            network.messages.reverse()
        assert network.run() == []
        assert_clean(network)


def test_an_answer_to_what_was_given_up_is_given_back(network):
    """Even if the abort was lost: the receiver need not wait for its deadline."""
    sender = network.pools["p0"]
    transfer = start(network, private=b"x")
    remote = sender.alloc_mem(1, on="d0", timeout_s=TIMEOUT_S)
    sender.cancel(transfer, "given up")
    remote.close()
    assert [message.kind for message in network.messages] == ["reserve"] * 2 + ["abort"] * 2
    del network.messages[2:]
    network.run()
    assert network.delivered.count("abort") == 2
    assert_clean(network)


def test_a_stale_epoch_is_refused(network):
    transfer = start(network, to_epoch=7)
    network.run()
    assert isinstance(transfer.error, StaleAddressError)
    assert "wanted epoch 7, it is in 1" in str(transfer.error)
    assert_clean(network)


def test_a_peer_that_has_gone_fails_its_transfers_at_once(network):
    sender = network.pools["p0"]
    sender.peers_changed({"p0": 1, "d0": 1})
    transfer = start(network)
    remote = sender.alloc_mem(2, on="d0", timeout_s=TIMEOUT_S)
    network.run(until="bytes")
    sender.peers_changed({"p0": 1})
    assert "d0 has gone" in str(transfer.error)
    assert remote.phase is RemotePhase.ENDED
    network.run()
    assert_clean(network)
    sender.peers_changed({"p0": 1, "d0": 1})
    transfer = start(network)
    sender.peers_changed({"p0": 1, "d0": 2})
    assert transfer.phase is TransferPhase.FAILED


def test_who_has_no_channel_or_transport_fails_its_transfers(network):
    lonely = make_pool("p1")
    with compute(lonely, PROMPT) as lease:
        transfer = lonely.transfer(lease, "d0", token_ids=PROMPT, timeout_s=1.0)
    lonely.poll()
    assert "no control channel" in str(transfer.error)
    mute = make_pool("p2", network=network, transports=[])
    with compute(mute, PROMPT) as lease:
        transfer = mute.transfer(lease, "d0", token_ids=PROMPT, timeout_s=1.0)
    network.run()
    assert "no transport" in str(transfer.error)
    assert_clean(network)


def test_a_channel_that_raises_fails_the_transfer_alone():
    class BrokenChannel:
        def reserve(self, to, call, *, timeout_s):
            raise OSError("no route")

        def commit(self, to, transfer_id, *, timeout_s):
            raise OSError

        def abort(self, to, transfer_id, reason):
            raise OSError

        def fetch(self, owner, call, *, timeout_s):
            raise OSError

    pool = make_pool("p0", channel=BrokenChannel())
    with compute(pool, PROMPT) as lease:
        transfer = pool.transfer(lease, "d0", token_ids=PROMPT, timeout_s=1.0)
    pool.poll()
    assert "OSError: no route" in str(transfer.error)
    assert isinstance(transfer.error.__cause__, OSError)
    assert pool.num_leased == 0


def test_what_cannot_be_sent_is_refused_before_it_starts(network):
    sender = make_pool("p1", host_blocks=4, network=network)
    cache(sender, PROMPT)
    with sender.match(PROMPT) as lease:
        for token_ids, first_block, message in [
            (PROMPT, 0, "at least 4"),
            ([], 0, "token_ids: got none"),
            (PROMPT[:6], 4, "first_block: got 4"),
        ]:
            with pytest.raises(ValueError, match=message):
                sender.transfer(
                    lease, "d0", token_ids=token_ids, first_block=first_block, timeout_s=1.0
                )
    with pytest.raises(ValueError, match="closed"):
        sender.transfer(lease, "d0", token_ids=PROMPT[:6], timeout_s=1.0)
    with make_pool().alloc_mem(3) as foreign, pytest.raises(StaleAddressError):
        sender.transfer(foreign, "d0", token_ids=PROMPT[:6], timeout_s=1.0)
    assert network.messages == []
    assert_clean(network)


def test_blocks_on_a_peer_are_allocated_used_and_given_back(network):
    sender, receiver = network.pools["p0"], network.pools["d0"]
    answered = []
    with sender.alloc_mem(5, on="d0", timeout_s=TIMEOUT_S) as remote:
        remote.on_answer(answered.append)
        assert (remote.phase, remote.blocks) == (RemotePhase.PENDING, ())
        network.run()
        assert answered == [remote]
        remote.on_answer(answered.append)
        assert (remote.phase, len(remote.blocks), receiver.num_leased) == ("held", 5, 5)
        assert {(a.instance, a.epoch, a.tier) for a in remote.blocks} == {("d0", 1, Tier.HBM)}
        promised = [address.block for address in remote.blocks]
        transfer = start(network, private=b"x", into=remote)
        assert remote.phase is RemotePhase.ENDED
        (arrival,) = network.run()
    assert transfer.phase is TransferPhase.DONE
    assert arrival.lease.block_ids == promised[:4]
    np.testing.assert_array_equal(read_kv(receiver, arrival.lease), kv_of(receiver.layout, PROMPT))
    assert receiver.num_leased == 4  # the fifth is free again
    arrival.lease.close()
    with sender.alloc_mem(2, on="d0", timeout_s=TIMEOUT_S) as remote:
        network.run()
        assert receiver.num_leased == 2
    network.run()
    assert_clean(network)


def test_blocks_on_a_peer_come_to_an_end_in_every_way(network):
    sender = network.pools["p0"]
    refused = sender.alloc_mem(9, on="d0", timeout_s=TIMEOUT_S)
    network.run()
    assert "9 blocks on d0: wanted 9 blocks" in str(refused.error)
    closed_early = sender.alloc_mem(1, on="d0", timeout_s=TIMEOUT_S)
    network.run(until="reserved")
    closed_early.close()
    network.run()
    late = sender.alloc_mem(1, on="d0", timeout_s=TIMEOUT_S)
    network.run()
    with pytest.raises(ValueError, match="the remote lease is ended"):
        start(network, into=refused)
    with pytest.raises(ValueError, match="blocks of d0"), compute(sender, PROMPT) as lease:
        sender.transfer(lease, "d1", token_ids=PROMPT, into=late, timeout_s=1.0)
    with pytest.raises(ValueError, match="on a peer"):
        sender.alloc_mem(1, Tier.DISK, on="d0", timeout_s=1.0)
    network.clock.advance(TIMEOUT_S)
    network.run()
    assert late.phase is RemotePhase.ENDED
    assert_clean(network)


def test_a_transfer_that_fails_gives_the_blocks_it_was_to_use_back(network):
    sender = network.pools["p0"]
    remote = sender.alloc_mem(4, on="d0", timeout_s=TIMEOUT_S)
    network.run()
    transfer = start(network, PROMPT[:6], into=remote, insert=True, first_block=2)
    network.run()
    assert "refused" in str(transfer.error)
    assert_clean(network)


def test_a_callback_may_cancel_another_transfer(network):
    one, two = start(network), start(network)
    one.on_done(lambda _: network.pools["p0"].cancel(two, "with the first"))
    network.clock.advance(TIMEOUT_S)
    network.run()
    assert "with the first" in str(two.error)
    assert_clean(network)


def test_closing_a_pool_fails_what_is_under_way(network):
    transfer = start(network)
    remote = network.pools["p0"].alloc_mem(1, on="d0", timeout_s=1.0)
    network.run(until="bytes")
    network.pools["p0"].close()
    assert "p0 is closing" in str(transfer.error)
    assert remote.phase is RemotePhase.ENDED
    network.run()
    assert_clean(network)
