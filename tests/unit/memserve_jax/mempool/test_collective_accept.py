"""The receiving end: turns that are never used end the job, senders that leave do not."""

import dataclasses

import pytest

from memserve_jax.mempool import collective_accept
from memserve_jax.mempool.announce import Announcement
from memserve_jax.mempool.collective_end import Step
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.shipment import Shipment
from tests.helpers.ports import TICKET
from tests.helpers.rendezvous import LAYOUT, PATIENCE_S, Cluster


@pytest.fixture
def cluster(monkeypatch):
    cluster = Cluster(monkeypatch, 2)
    yield cluster
    cluster.close()


def announce(cluster, step, *, number=1, name="t", **changed):
    """What p0 says to p1, made up; returns the list that gets the answer."""
    shipment = Shipment(
        ticket=TICKET,
        dtype="float32",
        shape=LAYOUT.packed_shape(2),
        num_pieces=1,
        timeout_s=PATIENCE_S,
    )
    text = dataclasses.replace(shipment, **changed).to_bytes() if step is Step.TURN else b""
    announcement = Announcement(
        transfer_id=name,
        transport="collective",
        part=Part.whole(LAYOUT, 2),
        address=cluster.transports[0].endpoint.address,
        number=number,
        detail=b" ".join((step.encode(), text)),
    )
    answers = []
    cluster.transports[1].announced(announcement, answers.append)
    return answers


def test_one_at_a_time(cluster):
    cluster.landed[1].expect("t", 2)
    cluster.landed[1].expect("u", 2)
    assert announce(cluster, Step.TURN) == [None]
    second = announce(cluster, Step.TURN, number=2, name="u")
    assert second == []
    assert announce(cluster, Step.LEAVE) == [None]
    assert second == [None]
    assert announce(cluster, Step.LEAVE, number=2) == [None]
    assert not cluster.failures


def test_who_left_before_it_asked_is_refused(cluster):
    cluster.landed[1].expect("t", 2)
    assert announce(cluster, Step.LEAVE) == [None]
    (error,) = announce(cluster, Step.TURN)
    assert "it left, or is here already" in str(error)


def test_nobody_enters_without_a_turn(cluster):
    (error,) = announce(cluster, Step.ENTER)
    assert "it has no turn" in str(error)


def test_a_turn_that_nobody_uses_ends_the_job(cluster, monkeypatch):
    monkeypatch.setattr(collective_accept, "GRACE_S", 0.0)
    cluster.landed[1].expect("t", 2)
    assert announce(cluster, Step.TURN, timeout_s=0.01) == [None]
    assert cluster.failed.wait(PATIENCE_S)
    assert "neither entered nor left" in cluster.failures[0]


def test_what_the_runtime_raises_fails_the_part(cluster, monkeypatch):
    def accept(*arguments):
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(collective_accept, "accept", accept)
    cluster.landed[1].expect("t", 2)
    assert announce(cluster, Step.TURN) == [None]
    answers = announce(cluster, Step.ENTER)
    cluster.transports[1]._end.worker.shutdown()
    assert "connection closed by peer" in str(answers[0])
    assert not cluster.transports[1]._end.deadlines.num_pending


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_pieces": 2}, "num_pieces: got 2, allowed: 1"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"ticket": b"forged"}, "not on this ticket"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(cluster, changed, named):
    cluster.landed[1].expect("t", 2)
    (error,) = announce(cluster, Step.TURN, **changed)
    assert named in str(error)


def test_nonsense_is_refused_by_name(cluster):
    answers = []
    made_up = cluster.announcer.made_up("t", LAYOUT, TICKET)
    cluster.transports[1].announced(made_up, answers.append)
    assert "step: got" in str(answers.pop())
    turn = dataclasses.replace(made_up, detail=b"turn {}")
    cluster.transports[1].announced(turn, answers.append)
    assert "address: got '127.0.0.1:1'" in str(answers.pop())
    far = dataclasses.replace(turn, address='["here:1", 0, [99]]')
    cluster.transports[1].announced(far, answers.append)
    assert "no device 99 in here:1" in str(answers.pop())
