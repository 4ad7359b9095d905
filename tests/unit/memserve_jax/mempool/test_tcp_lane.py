"""A lane against receivers that are slow, dead, or say what they must not."""

import contextlib
import threading
from concurrent.futures import Future

import numpy as np
import pytest

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool import tcp_lane
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.stored_rows import StoredRows
from memserve_jax.mempool.tcp_frames import Ack, Hello, Kind, PartHeader
from memserve_jax.mempool.tcp_lane import Lane, LaneTerms, Parcel
from memserve_jax.mempool.tcp_sockets import address_of, listen, receive_frame, receive_into, tune

SHORT_S, LONG_S = 0.2, 60.0
LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, block_size_tokens=2, head_dim=2, dtype="float32")
PART = Part.whole(LAYOUT, 2)


class Peer:
    """The other end of a lane, played by the test."""

    def __init__(self, timeout_s=LONG_S):
        self.listener = listen("127.0.0.1")
        terms = LaneTerms(
            hello=Hello(sender="p0", epoch=1, layout=LAYOUT),
            timeout_s=timeout_s,
            has_checksums=False,
            clock=SystemClock(),
        )
        self.lane = Lane(address_of("127.0.0.1", self.listener), terms)
        self.socket, _ = self.listener.accept()
        tune(self.socket, LONG_S)

    def submit(self, payload=None, part=PART):
        payload = np.ones(part.shape(LAYOUT), np.float32) if payload is None else payload
        parcel = Parcel(
            transfer_id="t",
            part=part,
            payload=payload,
            ticket=b"k",
            outcome=Future(),
            num_bytes=part.num_bytes(LAYOUT),
        )
        assert self.lane.submit(parcel)
        return parcel.outcome

    def take(self):
        """Reads one part; returns its header."""
        kind, body = receive_frame(self.socket)
        if kind is Kind.HELLO:
            assert Hello.decode(body).sender == "p0"
            kind, body = receive_frame(self.socket)
        header = PartHeader.decode(body)
        receive_into(self.socket, memoryview(bytearray(header.num_bytes)))
        return header

    def say(self, frame):
        self.socket.sendall(frame)

    def close(self):
        self.lane.close(TransferFailedError("the test is over"))
        self.lane.join(LONG_S)
        self.socket.close()
        self.listener.close()


@pytest.fixture
def peer():
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def hasty():
    peer = Peer(SHORT_S)
    yield peer
    peer.close()


def test_acks_may_come_late_and_in_any_order(peer):
    outcomes = [peer.submit() for _ in range(3)]
    numbers = [peer.take().number for _ in outcomes]
    assert numbers == [0, 1, 2]
    assert not any(outcome.done() for outcome in outcomes)
    for number in reversed(numbers):
        peer.say(Ack(number=number).encode())
        assert outcomes[number].result(LONG_S) is None


@pytest.mark.parametrize(
    "frame",
    [
        Ack(number=7).encode(),
        Hello(sender="d0", epoch=1, layout=LAYOUT).encode(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        Ack(number=0).encode()[:-1] + b"\xff",
    ],
    ids=["an ack of nothing", "a hello", "another protocol", "damage"],
)
def test_nonsense_ends_the_lane_and_all_on_it(peer, frame):
    outcomes = [peer.submit() for _ in range(2)]
    peer.take()
    peer.say(frame)
    for outcome in outcomes:
        with pytest.raises(TransferFailedError, match="tcp to 127"):
            outcome.result(LONG_S)
    peer.lane.join(LONG_S)
    assert peer.lane.is_over


def test_a_peer_that_dies_fails_what_waits(peer):
    outcomes = [peer.submit() for _ in range(2)]
    peer.take()
    peer.socket.close()
    for outcome in outcomes:
        with pytest.raises(TransferFailedError):
            outcome.result(LONG_S)


def test_a_peer_that_never_acknowledges_is_given_up(hasty):
    outcome = hasty.submit()
    hasty.take()
    with pytest.raises(TransferFailedError, match="no acknowledgement in"):
        outcome.result(LONG_S)


def test_a_peer_that_never_reads_is_given_up(hasty):
    """As one that was stopped: its kernel accepts, and takes what fits in its buffers."""
    part = Part.whole(LAYOUT, 1 << 20)  # 32 MiB
    outcomes = [hasty.submit(part=part) for _ in range(2)]
    for outcome in outcomes:
        with pytest.raises(TransferFailedError):
            outcome.result(LONG_S)
    assert hasty.lane.is_over


def test_an_idle_lane_stays(hasty):
    woken = threading.Event()
    assert not woken.wait(3 * SHORT_S)
    outcome = hasty.submit()
    hasty.say(Ack(number=hasty.take().number).encode())
    assert outcome.result(LONG_S) is None


def test_what_was_cancelled_is_not_sent(peer):
    may_read = threading.Event()

    class Slow(StoredRows):
        def rows(self, start=0, stop=None):
            assert may_read.wait(LONG_S)
            return super().rows(start, stop)

    rows = list(np.ones(PART.shape(LAYOUT), np.float32))
    first, second, third = peer.submit(Slow(rows)), peer.submit(), peer.submit()
    assert second.cancel()
    may_read.set()
    assert [peer.take().number for _ in range(2)] == [0, 2]
    for number in (0, 2):
        peer.say(Ack(number=number).encode())
    assert first.result(LONG_S) is None and third.result(LONG_S) is None


def test_a_small_part_that_is_there_is_sent_by_the_call(peer):
    settle(peer)
    with no_thread(peer):
        outcome = peer.submit()
        peer.say(Ack(number=peer.take().number).encode())
        assert outcome.result(LONG_S) is None


def test_what_the_kernel_does_not_take_at_once_goes_by_the_thread(peer, monkeypatch):
    settle(peer)
    monkeypatch.setattr(tcp_lane, "DIRECT_BYTES", 1 << 30)
    part = Part.whole(LAYOUT, 1 << 20)  # 32 MiB: more than fits in the buffers
    outcomes = [peer.submit(part=part), peer.submit(), peer.submit()]
    numbers = [peer.take().number for _ in outcomes]
    assert numbers == [1, 2, 3]  # after `settle`'s, in the order of the calls
    for number, outcome in zip(numbers, outcomes, strict=True):
        peer.say(Ack(number=number).encode())
        assert outcome.result(LONG_S) is None


def settle(peer):
    """Has the lane greet and idle."""
    outcome = peer.submit()
    peer.say(Ack(number=peer.take().number).encode())
    assert outcome.result(LONG_S) is None
    while peer.lane._num_queued:
        pass


@contextlib.contextmanager
def no_thread(peer):
    """The lane's thread would find nothing in its queue."""
    queued, peer.lane._queue = peer.lane._queue, None
    yield
    peer.lane._queue = queued


def test_a_queue_has_an_end(peer, monkeypatch):
    monkeypatch.setattr(tcp_lane, "MAX_QUEUED_PARTS", 2)
    for _ in range(2):
        peer.submit()
    with pytest.raises(TransferFailedError, match="2 parts wait for 127"):
        peer.submit()


def test_a_closed_lane_takes_nothing(peer):
    outcome = peer.submit()
    peer.lane.close(TransferFailedError("enough"))
    peer.lane.close(TransferFailedError("twice"))
    with pytest.raises(TransferFailedError, match="enough"):
        outcome.result(LONG_S)
    with pytest.raises(AssertionError):
        peer.submit()
