"""Both ends enter, in one order over all pairs. The joined program is played by queues."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.mempool.collective import CollectiveTransport
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.transport import Destination, Endpoint
from memserve_jax.parallel.job import Job
from tests.helpers.announcers import DirectAnnouncer
from tests.helpers.ports import TICKET
from tests.helpers.rendezvous import LAYOUT, PATIENCE_S, Cluster

Clusters = Callable[..., Cluster]


@pytest.fixture
def clusters(monkeypatch):
    made = []

    def make(*arguments, **options):
        made.append(Cluster(monkeypatch, *arguments, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def send(cluster, source, target, name, value=1.0, payload=None):
    end = cluster.transports[target].endpoint
    to = Destination(instance=InstanceId(f"p{target}"), endpoint=end, tier=Tier.HBM, ticket=TICKET)
    if payload is None:
        payload = jax.device_put(
            np.full(LAYOUT.packed_shape(2), value, np.float32),
            cluster.landed[source].port.packed_sharding,
        )
    return cluster.transports[source].send(name, Part.whole(LAYOUT, 2), payload, to)


def test_everyone_sends_to_everyone_at_once(clusters):
    cluster = clusters(3)
    pairs = list(itertools.permutations(range(3), 2)) * 8
    outcomes = []
    for number, (source, target) in enumerate(pairs):
        cluster.landed[target].expect(f"t{number}", 2)
        outcomes.append(send(cluster, source, target, f"t{number}", float(number)))
    for outcome in outcomes:
        outcome.result(PATIENCE_S)
    for target, landed in enumerate(cluster.landed):
        values = {name: float(np.asarray(payload).max()) for name, _, payload in landed.parts}
        assert values == {f"t{n}": float(n) for n, (_, to) in enumerate(pairs) if to == target}
    for transport in cluster.transports:
        assert transport.counters.num_calls == 16
        assert not transport._end.turns.num_waiting and not transport._end.deadlines.num_pending
    assert not cluster.failures


def test_what_nobody_expects_is_refused_before_anyone_enters(clusters):
    cluster = clusters(2)
    for source, target in ((0, 1), (1, 0)):
        with pytest.raises(TransferFailedError, match="expects no bytes"):
            send(cluster, source, target, "t").result(PATIENCE_S)
        cluster.landed[target].expect("u", 2)
        send(cluster, source, target, "u").result(PATIENCE_S)
    assert not cluster.failures


def test_it_refuses_by_name_what_it_cannot_do(clusters):
    cluster = clusters(2)
    refuses, end = cluster.transports[0].refuses, cluster.transports[1].endpoint
    assert refuses(end, Tier.HBM, Tier.HBM) is None
    assert refuses(end, Tier.HOST, Tier.HBM) == "host to hbm: only hbm to hbm"
    own = cluster.transports[0].endpoint
    assert refuses(own, Tier.HBM, Tier.HBM) == "both ends are in process 0 of the job"
    elsewhere = Endpoint("collective", end.address.replace("here:1", "there:2"))
    assert "it is in job there:2" in refuses(elsewhere, Tier.HBM, Tier.HBM)


def test_host_payloads_and_poolless_ends_are_refused(clusters):
    cluster = clusters(2)
    in_host = np.zeros(LAYOUT.packed_shape(2), np.float32)
    with pytest.raises(TransferFailedError, match="not in HBM"):
        send(cluster, 0, 1, "t", payload=in_host).result(PATIENCE_S)
    lone = CollectiveTransport(
        Job(coordinator="here:1", process=5, num_processes=6),
        DirectAnnouncer(),
        SystemClock(),
        timeout_s=PATIENCE_S,
        fail=cluster.failures.append,
    )
    answers = []
    lone.announced(DirectAnnouncer().made_up("t", LAYOUT, TICKET), answers.append)
    assert lone.endpoint is None and "no pool takes bytes" in str(answers[0])
    to = Destination(
        instance=InstanceId("p1"),
        endpoint=cluster.transports[1].endpoint,
        tier=Tier.HBM,
        ticket=TICKET,
    )
    payload = jnp.zeros(LAYOUT.packed_shape(2))
    with pytest.raises(TransferFailedError, match="no pool"):
        lone.send("t", Part.whole(LAYOUT, 2), payload, to).result(PATIENCE_S)
    lone.close()
