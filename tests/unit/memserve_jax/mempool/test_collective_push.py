"""The sending end: what it gives up it leaves, what hangs ends the job."""

import jax
import numpy as np
import pytest

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.mempool import collective_push
from memserve_jax.mempool.collective_end import Step
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.transport import Destination
from tests.helpers.ports import TICKET
from tests.helpers.rendezvous import LAYOUT, PATIENCE_S, Cluster


@pytest.fixture
def clusters(monkeypatch):
    made = []

    def make(**options):
        made.append(Cluster(monkeypatch, 2, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def send(cluster, source, target, name="t"):
    end = cluster.transports[target].endpoint
    to = Destination(instance=InstanceId(f"p{target}"), endpoint=end, tier=Tier.HBM, ticket=TICKET)
    payload = jax.device_put(
        np.ones(LAYOUT.packed_shape(2), np.float32),
        cluster.landed[source].port.packed_sharding,
    )
    return cluster.transports[source].send(name, Part.whole(LAYOUT, 2), payload, to)


def steps_said(cluster):
    return [said.detail.partition(b" ")[0].decode() for said in cluster.announcer.said]


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)])
def test_no_turn_in_time_is_given_up_and_left(clusters, source, target):
    cluster = clusters(timeout_s=0.2)
    cluster.transports[target]._end.turns.take("another", lambda: None)
    cluster.landed[target].expect("t", 2)
    with pytest.raises(TransferFailedError, match="no turn in"):
        send(cluster, source, target).result(PATIENCE_S)
    assert steps_said(cluster) == [Step.TURN, Step.LEAVE]
    for transport in cluster.transports:
        transport._end.turns.give_back("another")
        assert not transport._end.turns.num_waiting
    assert not cluster.failures


def test_its_own_turn_that_comes_too_late_is_given_back(clusters):
    cluster = clusters(timeout_s=0.2)
    turns = cluster.transports[0]._end.turns
    turns.take("another", lambda: None)
    with pytest.raises(TransferFailedError, match="no turn in"):
        send(cluster, 0, 1).result(PATIENCE_S)
    assert not cluster.announcer.said
    turns.give_back("another")
    granted = []
    turns.take("next", lambda: granted.append(True))
    assert granted


def test_a_peer_that_does_not_come_ends_the_job(clusters, monkeypatch):
    monkeypatch.setattr(collective_push, "GRACE_S", 0.0)
    cluster = clusters(timeout_s=0.2)
    monkeypatch.setattr(
        collective_push, "push", lambda *_: cluster.failed.wait(PATIENCE_S) and None
    )
    cluster.landed[1].expect("t", 2)
    sent = send(cluster, 0, 1)
    assert cluster.failed.wait(PATIENCE_S)
    assert "p1 did not come" in cluster.failures[0]
    payload = np.zeros(LAYOUT.packed_shape(2), np.float32)
    cluster.rendezvous.push(payload, cluster.devices(0), cluster.devices(1))
    sent.result(PATIENCE_S)


def test_what_the_runtime_raises_fails_the_part(clusters, monkeypatch):
    cluster = clusters()

    def push(payload, source, target):
        cluster.rendezvous.push(payload, source, target)
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(collective_push, "push", push)
    cluster.landed[1].expect("t", 2)
    with pytest.raises(TransferFailedError, match="RuntimeError: connection closed by peer"):
        send(cluster, 0, 1).result(PATIENCE_S)
    assert not cluster.transports[0]._end.deadlines.num_pending


def test_the_close_gives_up_what_waits(clusters):
    cluster = clusters()
    cluster.transports[0]._end.turns.take("another", lambda: None)
    waiting = send(cluster, 0, 1)
    cluster.close()
    with pytest.raises(TransferFailedError, match="closing"):
        waiting.result(PATIENCE_S)
