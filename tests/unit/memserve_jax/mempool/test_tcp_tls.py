"""The `tcp` transport under TLS: real sockets, real certificates."""

import contextlib
import socket
import threading

import jax
import numpy as np
import pytest

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.tls_files import TlsFiles
from memserve_jax.core.types import Tier
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.tcp import TcpTransport
from memserve_jax.mempool.tcp_tls import TlsTerms
from memserve_jax.mempool.transport import Destination
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding
from tests.helpers.certificates import CLUSTER_NAME, Authority, make_authority
from tests.helpers.ports import TICKET, Landed

WAIT_S = 60.0
LAYOUT = KVLayout(num_layers=4, num_kv_heads=4, block_size_tokens=16, head_dim=64, dtype="float32")
HOST = "127.0.0.1"


def terms(authority: Authority, file: str, *names: str, name: str | None = CLUSTER_NAME):
    paths = authority.issue(file, *(names or (CLUSTER_NAME,)))
    return TlsTerms(files=TlsFiles(paths, is_mutual=True), name=name)


class Ends:
    """A sender and a receiver that take HOST rows."""

    def __init__(self, sender: TlsTerms | None, receiver: TlsTerms | None):
        sharding = packed_sharding(make_mesh([jax.devices()[0]], 1), LAYOUT.num_kv_heads)
        self.landed = Landed("d0", LAYOUT, sharding)
        clock = SystemClock()
        self.sender = TcpTransport(clock, host=HOST, timeout_s=WAIT_S, tls=sender)
        self.sender.receive(Landed("p0", LAYOUT, sharding).port)
        self.receiver = TcpTransport(clock, host=HOST, timeout_s=WAIT_S, tls=receiver)
        self.receiver.receive(self.landed.port)

    def send(self, transfer: str, kv: np.ndarray):
        self.landed.expect(transfer, len(kv), tier=Tier.HOST)
        endpoint = self.receiver.endpoint
        to = Destination(instance="d0", endpoint=endpoint, tier=Tier.HOST, ticket=TICKET)
        return self.sender.send(transfer, Part.whole(LAYOUT, len(kv)), kv, to)


@contextlib.contextmanager
def ends(sender: TlsTerms | None, receiver: TlsTerms | None):
    made = Ends(sender, receiver)
    try:
        yield made
    finally:
        made.sender.close()
        made.receiver.close()


def make_kv(num_rows: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal(LAYOUT.packed_shape(num_rows), dtype=np.float32)


@pytest.fixture
def authority(tmp_path) -> Authority:
    return make_authority(tmp_path / "pki")


def test_bytes_arrive_as_they_were(authority):
    with ends(terms(authority, "p0"), terms(authority, "d0")) as two:
        kvs = {f"t{index}": make_kv(100, index) for index in range(3)}  # of two pieces each
        sendings = [two.send(transfer, kv) for transfer, kv in kvs.items()]
        for sending in sendings:
            assert sending.result(WAIT_S) is None
        parts = two.landed.wait_for(2 * len(kvs))
        arrived = {transfer: np.zeros_like(kv) for transfer, kv in kvs.items()}
        for transfer, part, rows in parts:
            stop = part.first_block + part.num_blocks
            arrived[transfer][part.first_block : stop] = np.asarray(rows)[: part.num_blocks]
        for transfer, kv in kvs.items():
            np.testing.assert_array_equal(arrived[transfer], kv)


def test_what_is_on_the_wire_is_not_the_bytes(authority):
    """A relay between the two sees none of the payload."""
    seen = bytearray()
    with ends(terms(authority, "p0"), terms(authority, "d0")) as two, relay(two, seen):
        kv = make_kv(2)
        kv[:] = 1.0
        assert two.send("t", kv).result(WAIT_S) is None
    assert len(seen) > kv.nbytes
    assert kv[0, 0, 0, 0].tobytes() not in bytes(seen)


@contextlib.contextmanager
def relay(two: Ends, seen: bytearray):
    """Has the sender go through a relay that keeps what it passes on to the receiver."""
    target = socket.socket()
    host, _, port = two.receiver.endpoint.address.rpartition(":")
    target.connect((host, int(port)))
    listener = socket.create_server((HOST, 0))
    two.receiver._address = f"{HOST}:{listener.getsockname()[1]}"

    def pump(source, sink, kept):
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                kept += chunk
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)

    def run():
        taken, _ = listener.accept()
        back = threading.Thread(target=pump, args=(target, taken, bytearray()))
        back.start()
        pump(taken, target, seen)
        back.join()
        taken.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        two.sender.close()
        thread.join()
        target.close()
        listener.close()


def test_strangers_get_no_further_than_the_greeting(authority, tmp_path):
    good = terms(authority, "d0")
    other = make_authority(tmp_path / "other")
    for stranger in (
        terms(other, "p0"),  # of another authority
        None,  # plain text
        terms(authority, "p0", "elsewhere.test"),  # no member
    ):
        with ends(stranger, good) as two, pytest.raises(TransferFailedError):
            two.send("t", make_kv(1)).result(WAIT_S)
        assert not two.landed.parts
    for impostor in (terms(other, "d1"), terms(authority, "d1", "elsewhere.test"), None):
        with ends(good, impostor) as two, pytest.raises(TransferFailedError):
            two.send("t", make_kv(1)).result(WAIT_S)
        assert not two.landed.parts


def test_without_a_name_a_server_is_its_address(authority):
    sender = terms(authority, "p0", name=None)
    with ends(sender, terms(authority, "d0", HOST, name=None)) as two:
        assert two.send("t", make_kv(1)).result(WAIT_S) is None
    receiver = terms(authority, "d0", "elsewhere.test", name=None)
    failure = pytest.raises(TransferFailedError, match="certificate verify failed")
    with ends(sender, receiver) as two, failure:
        two.send("t", make_kv(1)).result(WAIT_S)


def test_new_connections_show_new_certificates(authority):
    sender, receiver = terms(authority, "p0"), terms(authority, "d0")
    with ends(sender, receiver) as two:
        assert two.send("before", make_kv(1)).result(WAIT_S) is None
        authority.issue("d0", "elsewhere.test")
        assert two.send("during", make_kv(1)).result(WAIT_S) is None, "the connection stays"
        third = TcpTransport(SystemClock(), host=HOST, timeout_s=WAIT_S, tls=sender)
        third.receive(Landed("p1", LAYOUT, two.landed.port.packed_sharding).port)
        two.sender.close()
        two.sender = third
        with pytest.raises(TransferFailedError, match="certificate verify failed"):
            two.send("after", make_kv(1)).result(WAIT_S)


def test_whoever_says_nothing_holds_nobody_up(authority):
    with ends(terms(authority, "p0"), terms(authority, "d0")) as two:
        host, _, port = two.receiver.endpoint.address.rpartition(":")
        with contextlib.ExitStack() as silent:
            for words in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
                sock = silent.enter_context(socket.create_connection((host, int(port))))
                sock.sendall(words)
            assert two.send("t", make_kv(1)).result(WAIT_S) is None
            two.receiver.close()  # far sooner than the time-out of the handshakes
            assert two.receiver._listener.num_connections == 0
