"""The bound on transfers under way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.core.clock import ManualClock
from memserve_jax.mempool.gate import Gate
from tests.helpers.peers import Network
from tests.helpers.pools import compute, make_pool

PROMPT = list(range(4))


def test_who_comes_first_goes_first():
    gate, started = Gate(2), []
    for name in "abcd":
        at_once = gate.enter(name, "d0", lambda name=name: started.append(name), may_wait=True)
        assert at_once == (name in "ab")
    assert started == ["a", "b"]
    gate.leave("b")
    assert started == ["a", "b", "c"]
    gate.leave("d")  # gives up while it waits
    gate.leave("a")
    assert started == ["a", "b", "c"]
    gate.check({"c"})


def test_one_peer_leaves_places_to_others():
    gate, started = Gate(4), []

    def enter(name, to):
        return gate.enter(name, to, lambda: started.append(name), may_wait=True)

    assert all(enter(name, "stalls") for name in "abc")
    assert not enter("d", "stalls")
    assert enter("e", "goes on")
    assert not enter("f", "goes on")
    gate.leave("e")
    assert started == [*"abce", "f"]  # "d" came before it, but not for a place that is left
    gate.leave("b")
    assert started[5:] == ["d"]
    gate.check({*"acdf"})


def test_who_may_not_wait_is_turned_away():
    gate = Gate(1)
    assert gate.enter("a", "d0", lambda: None, may_wait=False)
    assert not gate.enter("b", "d0", lambda: None, may_wait=False)
    gate.check({"a"})


def test_a_gate_for_nobody_is_refused():
    with pytest.raises(ValueError, match="max_transfers: got 0"):
        Gate(0)


@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_never_more_than_the_limit_and_nobody_is_forgotten(limit, steps):
    gate, running, opened = Gate(limit), set(), set()
    for comes, number in steps:
        name = str(number)
        if comes and name not in opened:
            opened.add(name)
            to = f"d{number % 2}"
            gate.enter(name, to, lambda name=name: running.add(name), may_wait=True)
        elif not comes and name in opened:
            opened.remove(name)
            running.discard(name)
            gate.leave(name)
        of_each = [sum(int(name) % 2 == peer for name in opened) for peer in range(2)]
        most = limit - limit // 4
        assert len(running) == min(limit, sum(min(most, number) for number in of_each))
        gate.check(opened)


def test_a_pool_sends_no_more_at_once_than_it_may():
    network = Network(ManualClock())
    sender = make_pool("p0", hbm_blocks=16, network=network, max_transfers=2)
    make_pool("d0", hbm_blocks=16, devices=[1], network=network)
    transfers = []
    for salt in "abc":
        with compute(sender, PROMPT) as lease:
            transfers.append(
                sender.transfer_with_insert(PROMPT, lease, "d0", salt=salt, timeout_s=9.0)
            )
    assert [message.kind for message in network.messages] == ["reserve"] * 2
    sender.check()
    network.run()
    assert [transfer.phase for transfer in transfers] == ["done"] * 3
    assert sender.num_leased == 0


def test_a_send_back_is_dropped_first():
    network = Network(ManualClock())
    sender = make_pool("d0", network=network, max_transfers=1)
    make_pool("p0", devices=[1], network=network)
    with compute(sender, PROMPT) as lease:
        sender.transfer(lease, "p0", token_ids=PROMPT, timeout_s=9.0)
        dropped = sender.transfer_with_insert(PROMPT, lease, "p0", may_wait=False, timeout_s=9.0)
    sender.poll()
    assert dropped.is_ended
    assert "too many transfers are under way" in str(dropped.error)
    network.run()
    sender.check()


def test_a_transfer_that_waits_for_its_turn_can_be_cancelled_or_expire():
    network = Network(ManualClock())
    sender = make_pool("p0", hbm_blocks=16, network=network, max_transfers=1)
    make_pool("d0", devices=[1], network=network)
    transfers = []
    for _ in range(3):
        with compute(sender, PROMPT) as lease:
            transfers.append(sender.transfer(lease, "d0", token_ids=PROMPT, timeout_s=9.0))
    sender.cancel(transfers[1], "not wanted any more")
    sender.check()
    network.clock.advance(9.0)
    sender.poll()
    assert all(transfer.is_ended for transfer in transfers)
    sender.check()
    assert sender.num_leased == 0
