"""A listener against peers that are hostile, broken or half gone: nobody else is harmed."""

import socket

import jax
import numpy as np
import pytest

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import Tier
from memserve_jax.mempool import tcp_listener
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.tcp_frames import Ack, Hello, Kind, PartHeader
from memserve_jax.mempool.tcp_listener import Listener
from memserve_jax.mempool.tcp_sockets import address_of, connect, listen, receive_frame
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding
from tests.helpers.ports import TICKET, Landed

SHORT_S, LONG_S = 0.2, 60.0
LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, block_size_tokens=2, head_dim=2, dtype="float32")
PART = Part.whole(LAYOUT, 3)
KV = np.arange(PART.num_bytes(LAYOUT) // 4, dtype=np.float32).reshape(PART.shape(LAYOUT))
HELLO = Hello(sender="p0", epoch=1, layout=LAYOUT).encode()


class Door:
    """A listener, the port behind it, and connections to it."""

    def __init__(self, timeout_s=LONG_S):
        mesh = make_mesh(jax.devices()[:1], 1)
        self.landed = Landed("d0", LAYOUT, packed_sharding(mesh, 1))
        self.landed.expect("t", 3, tier=Tier.HOST)
        sock = listen("127.0.0.1")
        self.address = address_of("127.0.0.1", sock)
        self.listener = Listener(sock, self.landed.port, timeout_s=timeout_s)
        self.sockets = []

    def connect(self, greeting=HELLO):
        sock = connect(self.address, LONG_S)
        self.sockets.append(sock)
        sock.sendall(greeting)
        return sock

    def close(self):
        self.listener.close()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def door():
    door = Door()
    yield door
    door.close()


@pytest.fixture
def hasty():
    door = Door(SHORT_S)
    yield door
    door.close()


def header(**fields):
    fields = {
        "number": 0,
        "transfer_id": "t",
        "ticket": TICKET,
        "part": PART,
        "num_bytes": KV.nbytes,
    } | fields
    return PartHeader(**fields).encode()


def ack_of(sock):
    kind, body = receive_frame(sock)
    assert kind is Kind.ACK
    return Ack.decode(body)


def is_hung_up(sock):
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def still_serves(door):
    """A well-behaved peer gets through, whatever others do."""
    num_before = len(door.landed.parts)
    door.landed.expect("fine", 3, tier=Tier.HOST)
    sock = door.connect()
    sock.sendall(header(transfer_id="fine", number=9) + KV.tobytes())
    assert ack_of(sock) == Ack(number=9)
    transfer, part, rows = door.landed.wait_for(num_before + 1)[-1]
    assert (transfer, part) == ("fine", PART)
    np.testing.assert_array_equal(rows, KV)
    return True


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: d0\r\n\r\n",
        header(),
        Hello(
            sender="p0",
            epoch=1,
            layout=KVLayout(
                num_layers=2, num_kv_heads=2, block_size_tokens=2, head_dim=2, dtype="float32"
            ),
        ).encode(),
        HELLO + HELLO,
        HELLO + Ack(number=0).encode(),
        HELLO + b"\x00" * 64,
        HELLO + header()[:-1] + b"\xff",
        HELLO + header(ticket=b"guess"),
        HELLO + header(num_bytes=KV.nbytes + 1),
        HELLO + header(num_bytes=2**63),
        HELLO + header(part=Part(0, 2**32 - 1, 0, 2**32 - 1), num_bytes=2**63),
        HELLO + header(part=Part(0, 2**31, 0, 2), num_bytes=Part(0, 2**31, 0, 2).num_bytes(LAYOUT)),
        HELLO + header(checksum=1) + KV.tobytes(),
    ],
    ids=[
        "another protocol",
        "no hello",
        "another layout",
        "two hellos",
        "an ack",
        "zeros",
        "damage",
        "a wrong ticket",
        "a wrong size",
        "a size without end",
        "a part without end",
        "a part that nobody can take",
        "a wrong checksum",
    ],
)
def test_who_says_the_wrong_thing_is_hung_up_on(door, said):
    before = still_serves(door)
    sock = door.connect(said)
    assert is_hung_up(sock)
    assert before and still_serves(door)
    assert not [each for each in door.landed.parts if each[0] == "t"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"transfer_id": "ended"}, "ended: d0 expects no bytes of it"),
        (
            {"part": Part.whole(LAYOUT, 3, 1)},
            "t: blocks: got 1 to 4, allowed: within 0 to 3",
        ),
    ],
)
def test_what_nobody_expects_any_more_is_skipped(door, fields, reason):
    sock = door.connect()
    sock.sendall(header(**fields) + KV.tobytes())
    assert ack_of(sock) == Ack(number=0, refused_because=reason)
    sock.sendall(header(number=1) + KV.tobytes())
    assert ack_of(sock) == Ack(number=1)
    assert len(door.landed.wait_for(1)) == 1


@pytest.mark.parametrize("num_sent", [0, 1, len(HELLO) - 1, len(HELLO) + 5, len(HELLO) + 200])
def test_who_falls_silent_is_hung_up_on_and_leaves_nothing(hasty, num_sent):
    sock = hasty.connect((HELLO + header() + KV.tobytes())[:num_sent])
    assert still_serves(hasty)
    assert is_hung_up(sock)
    assert [each[0] for each in hasty.landed.parts] == ["fine"]


def test_who_dies_in_the_middle_leaves_nothing(door):
    sock = door.connect(HELLO + header() + KV.tobytes()[:-1])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()  # a reset, as from a killed process
    assert still_serves(door)
    assert [each[0] for each in door.landed.parts] == ["fine"]


def test_many_silent_strangers_leave_room_or_are_turned_away(door, monkeypatch):
    monkeypatch.setattr(tcp_listener, "MAX_CONNECTIONS", 3)
    kept = [door.connect(b"") for _ in range(3)]
    assert is_hung_up(door.connect(b""))
    kept.pop().close()
    while door.listener.num_connections == 3:
        pass
    assert still_serves(door)


def test_closing_ends_every_connection(door):
    socks = [door.connect(HELLO), door.connect(HELLO + header() + KV.tobytes()[:-1])]
    door.listener.close()
    assert all(is_hung_up(sock) for sock in socks)
    assert door.listener.num_connections == 0
