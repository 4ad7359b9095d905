"""TcpTransport between two ports in one process: real sockets, both tiers, any sharding."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import Tier
from memserve_jax.mempool import tcp_sending
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.stored_rows import StoredRows
from memserve_jax.mempool.tcp import TcpTransport
from memserve_jax.mempool.tcp_sockets import address_of, listen
from memserve_jax.mempool.transport import Destination, Endpoint
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding
from tests.helpers.ports import TICKET, Landed

WAIT_S = 60.0
LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, block_size_tokens=4, head_dim=8, dtype="bfloat16")
PART = Part.whole(LAYOUT, 3)
HOST = "127.0.0.1"


def sharding_of(*devices):
    return packed_sharding(make_mesh([jax.devices()[i] for i in devices], len(devices)), 2)


def make_kv(num_rows, seed=0):
    kv = np.random.default_rng(seed).integers(-99, 99, LAYOUT.packed_shape(num_rows))
    return kv.astype(jnp.bfloat16)


class Ends:
    """A sender and a receiver, and where the receiver is."""

    def __init__(self, devices=(1,), timeout_s=WAIT_S, **options):
        self.sender = TcpTransport(SystemClock(), host=HOST, timeout_s=timeout_s, **options)
        self.sender.receive(Landed("p0", LAYOUT, sharding_of(0)).port)
        self.landed = Landed("d0", LAYOUT, sharding_of(*devices))
        self.receiver = TcpTransport(SystemClock(), host=HOST, timeout_s=timeout_s)
        self.receiver.receive(self.landed.port)

    def to(self, tier=Tier.HBM, ticket=TICKET, endpoint=None):
        endpoint = endpoint or self.receiver.endpoint
        return Destination(instance="d0", endpoint=endpoint, tier=tier, ticket=ticket)

    def send(self, transfer="t", part=PART, payload=None, **to):
        payload = make_kv(part.num_blocks) if payload is None else payload
        return self.sender.send(transfer, part, payload, self.to(**to))

    def close(self):
        self.sender.close()
        self.receiver.close()


@pytest.fixture
def ends():
    ends = Ends()
    yield ends
    ends.close()


def as_device_array(kv, *devices):
    return jax.device_put(np.concatenate([kv, kv[:1]]), sharding_of(*devices))


@pytest.mark.parametrize("target", [Tier.HBM, Tier.HOST])
@pytest.mark.parametrize(
    "source",
    [
        lambda kv: as_device_array(kv, 0),
        lambda kv: as_device_array(kv, 2, 3),
        lambda kv: kv,
        lambda kv: StoredRows(list(kv)),
        lambda kv: StoredRows([jnp.asarray(row) for row in kv]),
    ],
    ids=["device", "sharded", "host", "scattered", "pinned"],
)
@pytest.mark.parametrize("devices", [(1,), (4, 5)])
@pytest.mark.parametrize("has_checksums", [False, True])
def test_every_pair_of_tiers_and_shardings(target, source, devices, has_checksums):
    ends = Ends(devices, has_checksums=has_checksums)
    ends.landed.expect("t", 3, tier=target)
    kv = make_kv(3)
    assert ends.send(payload=source(kv), tier=target).result(WAIT_S) is None
    ((transfer, part, arrived),) = ends.landed.wait_for(1)
    assert (transfer, part) == ("t", PART)
    if target is Tier.HBM:
        assert arrived.sharding == sharding_of(*devices)
        assert arrived.shape[0] == 4  # padded as compiled copies are
    else:
        assert isinstance(arrived, np.ndarray) and arrived.shape[0] == 3
    np.testing.assert_array_equal(np.asarray(arrived)[:3], kv)
    counters = ends.sender.counters
    assert (counters.num_calls, counters.num_bytes) == (1, kv.nbytes)
    ends.close()


def test_many_parts_share_a_connection_and_arrive_in_order(ends):
    ends.landed.expect("t", 16)
    parts = [
        Part(block, 1, layer, 1, side, 1)
        for block in range(16)
        for layer in range(2)
        for side in range(2)
    ]
    kv = make_kv(16)
    sent = [
        ends.send(
            part=part,
            payload=kv[
                part.first_block : part.first_block + 1,
                part.first_layer : part.first_layer + 1,
                part.first_side : part.first_side + 1,
            ],
        )
        for part in parts
    ]
    for each in sent:
        assert each.result(WAIT_S) is None
    assert [part for _, part, _ in ends.landed.wait_for(64)] == parts
    assert ends.receiver._listener.num_connections == 1
    for (_, part, arrived), number in zip(ends.landed.parts, range(64), strict=True):
        wanted = kv[part.first_block, part.first_layer, part.first_side]
        np.testing.assert_array_equal(np.asarray(arrived)[0, 0, 0], wanted, str(number))


def test_a_large_part_travels_in_pieces_and_counts_as_one_call(ends, monkeypatch):
    monkeypatch.setattr(tcp_sending, "PIECE_BYTES", 3 * LAYOUT.block_bytes)
    ends.landed.expect("t", 9)
    kv = make_kv(9)
    part = Part.whole(LAYOUT, 7, 2)
    for payload in (as_device_array(kv[2:], 2, 3), StoredRows(list(kv[2:]))):
        ends.landed.expect("t", 9)
        assert ends.send(part=part, payload=payload).result(WAIT_S) is None
        parts = ends.landed.wait_for(4)
        landed = [(each.first_block, each.num_blocks) for _, each, _ in parts]
        assert landed == [(2, 2), (4, 2), (6, 2), (8, 1)]
        for _, each, arrived in ends.landed.parts:
            rows = kv[each.first_block : each.first_block + each.num_blocks]
            np.testing.assert_array_equal(np.asarray(arrived)[: each.num_blocks], rows)
        ends.landed.parts.clear()
    assert (ends.sender.counters.num_calls, ends.sender.counters.num_bytes) == (
        2,
        14 * kv[0].nbytes,
    )
    ends.landed.expect("t", 9)
    ends.landed.port.admits("t", Part.whole(LAYOUT, 1, 6), TICKET)
    with pytest.raises(TransferFailedError, match="admitted before"):
        ends.send(part=part, payload=kv[2:]).result(WAIT_S)


def test_a_peer_that_stands_still_keeps_nobody_else_waiting(ends):
    still = listen(HOST)  # its kernel accepts, nobody reads
    at = Endpoint("tcp", address_of(HOST, still))
    waiting = [ends.send(endpoint=at) for _ in range(20)]
    for number in range(5):
        ends.landed.expect(f"t{number}", 3)
        assert ends.send(f"t{number}").result(WAIT_S) is None
    assert not any(each.done() for each in waiting)
    ends.sender.close()
    for each in waiting:
        with pytest.raises(TransferFailedError, match="tcp is closing"):
            each.result(WAIT_S)
    still.close()


def test_a_refusal_fails_its_part_alone(ends):
    ends.landed.expect("t", 3)
    ended = ends.send("u")
    fine = ends.send("t")
    again = ends.send("t")
    with pytest.raises(TransferFailedError, match="refused: u: d0 expects no bytes of it"):
        ended.result(WAIT_S)
    assert fine.result(WAIT_S) is None
    with pytest.raises(TransferFailedError, match="admitted before"):
        again.result(WAIT_S)
    assert len(ends.landed.wait_for(1)) == 1


def test_a_wrong_ticket_costs_the_connection_and_the_next_one_is_new(ends):
    ends.landed.expect("t", 3)
    with pytest.raises(TransferFailedError, match="tcp to 127"):
        ends.send(ticket=b"guess").result(WAIT_S)
    assert ends.landed.parts == []
    assert ends.send().result(WAIT_S) is None


def test_another_layout_is_turned_away():
    ends = Ends()
    other = KVLayout(num_layers=2, num_kv_heads=2, block_size_tokens=4, head_dim=8, dtype="float32")
    stranger = TcpTransport(SystemClock(), host=HOST, timeout_s=WAIT_S)
    stranger.receive(Landed("p1", other, sharding_of(0)).port)
    ends.landed.expect("t", 3)
    kv = np.zeros(other.packed_shape(3), np.float32)
    with pytest.raises(TransferFailedError):
        stranger.send("t", Part.whole(other, 3), kv, ends.to()).result(WAIT_S)
    assert ends.landed.parts == []
    stranger.close()
    ends.close()


def test_nobody_there_fails_the_part(ends):
    address = ends.receiver.endpoint.address
    ends.receiver.close()
    with pytest.raises(TransferFailedError, match=address):
        ends.send(endpoint=Endpoint("tcp", address)).result(WAIT_S)
    with pytest.raises(TransferFailedError, match="no-such-host"):
        ends.send(endpoint=Endpoint("tcp", "no-such-host.invalid:1")).result(WAIT_S)


def test_a_payload_that_cannot_be_had_fails_alone(ends):
    ends.landed.expect("t", 3)
    deleted = as_device_array(make_kv(3), 0)
    deleted.delete()
    broken = ends.send(payload=deleted)
    short = ends.send(payload=make_kv(2))
    fine = ends.send()
    for failed in (broken, short):
        with pytest.raises(TransferFailedError, match="its payload"):
            failed.result(WAIT_S)
    assert fine.result(WAIT_S) is None


def test_closing_either_end_fails_what_is_under_way(ends):
    ends.landed.expect("t", 3)
    ends.send().result(WAIT_S)
    may_read = threading.Event()

    class Slow(StoredRows):
        def rows(self, start=0, stop=None):
            assert may_read.wait(WAIT_S)
            return super().rows(start, stop)

    waiting = ends.send(payload=Slow(list(make_kv(3))))
    ends.receiver.close()
    may_read.set()
    with pytest.raises(TransferFailedError):
        waiting.result(WAIT_S)
    ends.sender.close()
    with pytest.raises(TransferFailedError, match="tcp is closed"):
        ends.send().result(WAIT_S)
    ends.sender.close()


def test_the_pairs_it_can_do_and_those_it_cannot():
    transport = TcpTransport(SystemClock(), host=HOST, timeout_s=WAIT_S)
    assert transport.endpoint is None
    at = Endpoint("tcp", "there:1")
    for source in (Tier.HBM, Tier.HOST):
        for target in (Tier.HBM, Tier.HOST):
            assert transport.refuses(at, source, target) is None
    assert (
        transport.refuses(at, Tier.DISK, Tier.HBM) == "disk to hbm: nothing moves from or to disk"
    )
    transport.close()
