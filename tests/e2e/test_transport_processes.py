"""KV between the pools of real processes, by the transports that both ends have to act for."""

import signal

import pytest

from tests.helpers.transport_pairs import processes

MESHES = [(1, 1, 4), (1, 2, 4), (4, 2, 4), (2, 4, 4), (2, 2, 3)]


@pytest.fixture(scope="module", params=["jax_transfer", "collective"])
def pair(request):
    with processes(2, request.param) as pair:
        yield pair


@pytest.mark.parametrize(("tp", "peer_tp", "num_heads"), MESHES)
def test_kv_arrives_whatever_the_meshes(pair, tp, peer_tp, num_heads):
    pair.make_pools((tp, peer_tp), num_heads=num_heads)
    for source, target in ((0, 1), (1, 0), (0, 1)):
        prompt, sent = pair.send(source, target)
        outcome = sent.result()
        assert (outcome["error"], outcome["num_blocks"]) == ("", 5)
        assert pair.digest(target, prompt) == pair.digest(source, prompt)
    assert pair.num_leased(0) == pair.num_leased(1) == 0


def test_many_at_once_both_ways(pair):
    pair.make_pools((1, 1), hbm_blocks=64)
    sent = [pair.send(number % 2, 1 - number % 2) for number in range(8)]
    assert [outcome.result()["error"] for _, outcome in sent] == [""] * 8
    for prompt, _ in sent:
        assert pair.digest(0, prompt) == pair.digest(1, prompt)
    assert pair.num_leased(0) == pair.num_leased(1) == 0


def test_jax_transfer_a_stopped_peer_stalls_nobody_else_and_leaves_nothing():
    with processes(3, "jax_transfer") as three:
        three.make_pools((1, 1, 1), timeout_s=3.0)
        for source, target in ((0, 1), (1, 0), (0, 2), (2, 0)):
            assert three.send(source, target)[1].result()["error"] == ""
        three.workers[1].send_signal(signal.SIGSTOP)
        lost, failing = three.send(0, 1, timeout_s=2.0)
        for source, target in ((0, 2), (2, 0)):
            assert three.send(source, target)[1].result()["error"] == ""
        assert failing.result()["error"]
        assert three.num_leased(0) == three.num_leased(2) == 0
        three.workers[1].send_signal(signal.SIGCONT)
        prompt, sent = three.send(0, 1)
        assert sent.result()["error"] == ""
        assert three.digest(1, prompt) == three.digest(0, prompt)
        assert three.digest(1, lost) in ((0, ""), three.digest(0, lost))
        assert three.num_leased(1) == 0


def test_jax_transfer_a_killed_peer_leaves_nothing():
    with processes(2, "jax_transfer") as pair:
        pair.make_pools((1, 1), timeout_s=3.0)
        assert pair.send(0, 1)[1].result()["error"] == ""
        pair.workers[1].send_signal(signal.SIGKILL)
        pair.workers[1].wait(30.0)
        assert pair.send(0, 1, timeout_s=2.0)[1].result()["error"]
        assert pair.num_leased(0) == 0


@pytest.mark.slow
def test_collective_three_processes_all_ways_at_once():
    with processes(3, "collective") as three:
        three.make_pools((2, 1, 4), hbm_blocks=128)
        ways = [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)] * 3
        sent = [(target, *three.send(source, target)) for source, target in ways]
        for target, prompt, outcome in sent:
            assert outcome.result()["error"] == ""
            assert three.digest(target, prompt)[0] == 5
        assert [three.num_leased(index) for index in range(3)] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_collective_a_job_ends_as_one(victim, number):
    with processes(2, "collective") as pair:
        pair.make_pools((1, 1))
        assert pair.send(0, 1)[1].result()["error"] == ""
        pair.workers[victim].send_signal(number)
        assert pair.workers[1 - victim].wait(60.0) != 0
