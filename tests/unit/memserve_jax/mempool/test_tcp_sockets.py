"""Sockets that move whole buffers, and give up where nothing moves."""

import socket
import threading

import numpy as np
import pytest

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.mempool.tcp_frames import Ack, FrameError, Kind
from memserve_jax.mempool.tcp_sockets import (
    BUFFERS_PER_CALL,
    StalledError,
    address_of,
    connect,
    hang_up,
    listen,
    receive_frame,
    receive_into,
    send_all,
    send_now,
    tune,
)

SHORT_S, LONG_S = 0.2, 60.0
HOST = "127.0.0.1"


class Pair:
    """Two ends of a connection."""

    def __init__(self, timeout_s=LONG_S):
        self.listener = listen(HOST)
        self.near = connect(address_of(HOST, self.listener), timeout_s)
        self.far, _ = self.listener.accept()
        tune(self.far, timeout_s)

    def close(self):
        for sock in (self.near, self.far, self.listener):
            sock.close()


@pytest.fixture
def pair():
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def hasty():
    pair = Pair(SHORT_S)
    yield pair
    pair.close()


def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_any_number_of_buffers_arrives_whole(pair):
    rng = np.random.default_rng(0)
    sizes = [0, 1, 1 << 22, 3, *rng.integers(0, 999, BUFFERS_PER_CALL + 7)]
    buffers = [memoryview(rng.integers(0, 255, size, np.uint8)) for size in sizes]
    wanted = b"".join(buffers)
    sender = in_thread(lambda: send_all(pair.near, buffers))
    room = bytearray(len(wanted))
    receive_into(pair.far, memoryview(room))
    sender.join()
    assert room == wanted


def test_what_the_kernel_does_not_take_at_once_is_left(pair):
    buffers = [memoryview(np.full(size, size % 251, np.uint8)) for size in (0, 5, 64 << 20, 7)]
    left = send_now(pair.near, buffers)
    assert [each.nbytes for each in left[1:]] == [7] and 0 < left[0].nbytes < 64 << 20
    room = bytearray(sum(each.nbytes for each in buffers))
    receiver = in_thread(lambda: receive_into(pair.far, memoryview(room)))
    send_all(pair.near, left)
    receiver.join()
    assert room == b"".join(buffers)


def test_a_peer_that_takes_nothing_stalls_its_sender(hasty):
    with pytest.raises(StalledError, match="takes no bytes"):
        send_all(hasty.near, [memoryview(bytearray(64 << 20))])


def test_a_peer_that_sends_nothing_stalls_its_receiver(hasty):
    assert receive_frame(hasty.far) is None  # nothing has begun: no harm
    hasty.near.sendall(Ack(number=1).encode()[:7])
    with pytest.raises(StalledError, match="sends nothing"):
        receive_frame(hasty.far)


def test_frames_come_one_by_one(pair):
    acks = [Ack(number=1), Ack(number=2, refused_because="no")]
    pair.near.sendall(b"".join(ack.encode() for ack in acks) + b"rubbish, long enough")
    for ack in acks:
        kind, body = receive_frame(pair.far)
        assert (kind, Ack.decode(body)) == (Kind.ACK, ack)
    with pytest.raises(FrameError):
        receive_frame(pair.far)


def test_a_connection_that_ends_is_noticed_at_once(pair):
    waiting = []

    def wait():
        try:
            receive_frame(pair.far)
        except ConnectionError as error:
            waiting.append(error)

    thread = in_thread(wait)
    hang_up(pair.near)
    thread.join(LONG_S)
    assert "closed" in str(waiting[0])
    hang_up(pair.near)
    with pytest.raises(OSError):
        send_all(pair.near, [memoryview(b"x")])


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:port", "127.0.0.1:99999", ":"])
def test_what_is_no_address_cannot_be_reached(address):
    with pytest.raises(TransferFailedError):
        connect(address, SHORT_S)


def test_nobody_listens_any_more():
    listener = listen(HOST)
    address = address_of(HOST, listener)
    listener.close()
    with pytest.raises(TransferFailedError, match=f"cannot connect to {address}"):
        connect(address, SHORT_S)


def test_addresses_name_the_port():
    with listen(HOST) as listener:
        port = listener.getsockname()[1]
        assert address_of("10.0.0.7", listener) == f"10.0.0.7:{port}"
        assert address_of("fe80::1", listener) == f"[fe80::1]:{port}"


def test_buffers_are_large_and_keepalive_is_on(pair):
    for sock in (pair.near, pair.far):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
