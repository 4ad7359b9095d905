"""Device memory to device memory by pulls, over real sockets within this process."""

import json
import threading
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.mempool.jax_transfer import JaxTransferTransport
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.transport import Destination, Endpoint
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding
from tests.helpers.announcers import DirectAnnouncer
from tests.helpers.ports import TICKET, Landed

PATIENCE_S = 30.0


def layout(num_heads=4):
    return KVLayout(
        num_layers=2,
        num_kv_heads=num_heads,
        block_size_tokens=4,
        head_dim=8,
        dtype="float32",
    )


class Pair:
    """p0 and d0, on disjoint devices."""

    def __init__(self, tp=1, peer_tp=1, *, num_heads=4, timeout_s=PATIENCE_S):
        self.announcer, self.layout = DirectAnnouncer(), layout(num_heads)
        self.landed, self.transports = [], []
        for name, first, size in (("p0", 0, tp), ("d0", 4, peer_tp)):
            mesh = make_mesh(jax.devices()[first : first + size], size)
            landed = Landed(name, self.layout, packed_sharding(mesh, num_heads))
            transport = JaxTransferTransport(
                self.announcer, SystemClock(), host="127.0.0.1", timeout_s=timeout_s
            )
            transport.receive(landed.port)
            self.announcer.ends[name] = transport
            self.landed.append(landed)
            self.transports.append(transport)

    def payload(self, num_rows=4):
        values = np.random.default_rng(0).random(self.layout.packed_shape(num_rows), np.float32)
        return jax.device_put(values, self.landed[0].port.packed_sharding)

    def send(self, name="t", num_blocks=4, payload=None, ticket=TICKET):
        end = self.transports[1].endpoint
        to = Destination(instance=InstanceId("d0"), endpoint=end, tier=Tier.HBM, ticket=ticket)
        part = Part.whole(self.layout, num_blocks)
        payload = self.payload() if payload is None else payload
        return self.transports[0].send(name, part, payload, to)

    def close(self):
        for transport in self.transports:
            transport.close()


@pytest.fixture
def pairs():
    made = []

    def make(*arguments, **options):
        made.append(Pair(*arguments, **options))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.mark.parametrize(
    ("tp", "peer_tp", "num_heads"), [(1, 1, 4), (1, 2, 4), (4, 2, 4), (2, 4, 4), (2, 2, 3)]
)
def test_parts_arrive_whatever_the_meshes(pairs, tp, peer_tp, num_heads):
    pair = pairs(tp, peer_tp, num_heads=num_heads)
    pair.landed[1].expect("t", 3)
    payload = pair.payload()
    pair.send(num_blocks=3, payload=payload).result(PATIENCE_S)
    ((name, part, arrived),) = pair.landed[1].parts
    assert (name, part) == ("t", Part.whole(pair.layout, 3))
    assert arrived.sharding == pair.landed[1].port.packed_sharding
    np.testing.assert_array_equal(np.asarray(arrived), np.asarray(payload))
    counters = pair.transports[0].counters
    assert (counters.num_calls, counters.num_bytes) == (1, 3 * pair.layout.block_bytes)


def test_what_nobody_expects_is_refused_before_it_moves(pairs):
    pair = pairs()
    with pytest.raises(TransferFailedError, match="expects no bytes"):
        pair.send().result(PATIENCE_S)
    pair.landed[1].expect("t", 4)
    with pytest.raises(TransferFailedError, match="not on this ticket"):
        pair.send(ticket=b"forged").result(PATIENCE_S)
    assert not pair.landed[1].parts and not pair.transports[0].counters.num_calls


def test_an_announcement_that_is_lost_frees_the_bytes(pairs):
    pair = pairs()
    pair.announcer.fails = True
    with pytest.raises(TransferFailedError, match="lost"):
        pair.send().result(PATIENCE_S)
    assert not pair.transports[0]._sendings
    pair.announcer.fails = False
    pair.landed[1].expect("u", 4)
    pair.send("u").result(PATIENCE_S)


def test_a_pull_that_hangs_is_given_up_and_stalls_no_other(pairs):
    pair = pairs()
    pair.landed[1].expect("stuck", 4)
    pair.landed[1].expect("t", 4)
    answers, answered = [], threading.Event()
    announcement = pair.announcer.made_up("stuck", pair.layout, TICKET, timeout_s=0.2)
    pair.transports[1].announced(announcement, lambda e: (answers.append(e), answered.set()))
    pair.send("t").result(PATIENCE_S)
    assert answered.wait(PATIENCE_S)
    assert "not here in" in str(answers[0]) and len(answers) == 1


def test_so_many_pulls_may_hang_and_no_more(pairs, monkeypatch):
    monkeypatch.setattr("memserve_jax.mempool.jax_pull.MAX_PULLS", 2)
    pair, answers = pairs(), []
    for name in ("a", "b", "c"):
        pair.landed[1].expect(name, 4)
        announcement = pair.announcer.made_up(name, pair.layout, TICKET, timeout_s=PATIENCE_S)
        pair.transports[1].announced(announcement, answers.append)
    assert "have not ended" in str(answers[0]) and len(answers) == 1


def test_the_close_fails_what_is_under_way_and_waits_for_no_pull(pairs):
    pair = pairs()
    pair.landed[1].expect("stuck", 4)
    answers = []
    announcement = pair.announcer.made_up("stuck", pair.layout, TICKET, timeout_s=PATIENCE_S)
    pair.transports[1].announced(announcement, answers.append)
    pair.announcer.holds = True
    waiting = pair.send("t")
    pair.announcer.held.wait(PATIENCE_S)
    pair.close()
    assert "is closing" in str(answers[0])
    with pytest.raises(TransferFailedError, match="is closing"):
        waiting.result(PATIENCE_S)
    with pytest.raises(TransferFailedError, match="it is closed"):
        pair.send("late").result(PATIENCE_S)


def test_it_refuses_by_name_what_it_cannot_do(pairs):
    pair = pairs()
    end = pair.transports[1].endpoint
    refuses = pair.transports[0].refuses
    assert refuses(end, Tier.HBM, Tier.HBM) is None
    assert refuses(end, Tier.HOST, Tier.HBM) == "host to hbm: only hbm to hbm"
    assert refuses(end, Tier.HBM, Tier.HOST) == "hbm to host: only hbm to hbm"
    other = Endpoint("jax_transfer", "jax 0.0.1 on tpu")
    assert "it runs jax 0.0.1 on tpu, this end jax" in refuses(other, Tier.HBM, Tier.HBM)


def test_host_payloads_and_poolless_ends_are_refused(pairs):
    pair = pairs()
    with pytest.raises(TransferFailedError, match="not in HBM"):
        pair.send(payload=np.zeros(pair.layout.packed_shape(4), np.float32)).result(PATIENCE_S)
    lone = JaxTransferTransport(
        DirectAnnouncer(), SystemClock(), host="127.0.0.1", timeout_s=PATIENCE_S
    )
    answer: Future = Future()
    announcement = pair.announcer.made_up("t", pair.layout, TICKET, timeout_s=1.0)
    lone.announced(announcement, answer.set_result)
    assert lone.endpoint is None and "no pool takes bytes" in str(answer.result(PATIENCE_S))
    lone.close()


def test_a_detail_that_is_nonsense_is_refused(pairs):
    pair, answers = pairs(), []
    announcement = pair.announcer.made_up("t", pair.layout, TICKET, detail=json.dumps([]).encode())
    pair.transports[1].announced(announcement, answers.append)
    assert "detail: got" in str(answers[0])
