"""Blocking sockets that never block for good: the kernel ends what makes no progress."""

import contextlib
import socket
import struct
from collections.abc import Sequence

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.mempool.tcp_frames import PREFIX_BYTES, Kind, Prefix
from memserve_jax.mempool.tcp_tls import TlsSocket, TlsTerms, dial

Wire = socket.socket | TlsSocket  # a connection
BUFFER_BYTES = 4 << 20  # of a socket, each way: enough to keep the wire busy over a hand-over
BUFFERS_PER_CALL = 512  # the kernel takes 1024
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 10, 5, 3

_TIMEVAL = struct.Struct("ll")


class StalledError(TransferFailedError):
    """Nothing moved on a connection for its time-out."""


def listen(host: str) -> socket.socket:
    """Returns a socket that listens on a free port of `host`."""
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        _set_buffers(listener)  # inherited: the window is agreed on when a connection opens
        listener.bind((host, 0))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def connect(address: str, timeout_s: float, tls: TlsTerms | None = None) -> Wire:
    """Returns a connection to `HOST:PORT`, encrypted where there is `tls`.

    Raises:
      TransferFailedError: the address is none, nobody answers there, or not as `tls` wants it.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        family, kind, protocol, _, at = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, ValueError) as error:
        raise TransferFailedError(f"{address}: {error}") from error
    try:
        _set_buffers(sock)
        sock.settimeout(timeout_s)
        sock.connect(at)
        tune(sock, timeout_s)
        return sock if tls is None else dial(sock, tls, host, timeout_s)
    except OSError as error:
        sock.close()
        raise TransferFailedError(f"cannot connect to {address}: {error}") from error


def tune(sock: socket.socket, timeout_s: float) -> None:
    """Makes each call on a connection end once nothing has moved for `timeout_s`.

    The kernel keeps the time (not `settimeout`, which polls before every call): a call moves as
    much as it is given, without coming back to Python.
    """
    sock.settimeout(None)
    timeout = _TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", max(1, int(timeout_s * 1000))),  # ms
    ):
        number = getattr(socket, option, None)  # not every system has each
        if number is not None:
            sock.setsockopt(socket.IPPROTO_TCP, number, value)


def send_all(sock: Wire, buffers: Sequence[memoryview]) -> None:
    """Sends buffers of bytes one after the other, without copying them.

    Raises:
      StalledError: the peer takes nothing.
      OSError: the connection is broken.
    """
    pending = [buffer for buffer in buffers if buffer.nbytes]
    while pending:
        try:
            sent = sock.sendmsg(pending[:BUFFERS_PER_CALL])
        except (BlockingIOError, TimeoutError) as error:  # the call's, or the connection's time
            raise StalledError("the peer takes no bytes") from error
        pending = _after(pending, sent)


def send_now(sock: socket.socket, buffers: Sequence[memoryview]) -> list[memoryview]:
    """Sends as much as the kernel takes in one call without waiting; returns what is left.

    Raises:
      OSError: the connection is broken.
    """
    pending = [buffer for buffer in buffers if buffer.nbytes]
    try:
        sent = sock.sendmsg(pending[:BUFFERS_PER_CALL], (), socket.MSG_DONTWAIT)
    except BlockingIOError:
        return pending
    return _after(pending, sent)


def receive_into(sock: Wire, room: memoryview) -> None:
    """Fills `room` with what comes.

    Raises:
      StalledError: nothing came.
      ConnectionError: the peer closed the connection.
      OSError: the connection is broken.
    """
    while room.nbytes:
        try:
            count = sock.recv_into(room, 0, socket.MSG_WAITALL)
        except BlockingIOError as error:
            raise StalledError("the peer sends nothing") from error
        if not count:
            raise ConnectionError("the peer closed the connection")
        room = room[count:]


def receive_frame(sock: Wire) -> tuple[Kind, bytes] | None:
    """Returns the kind and the body of the next frame; None where none began in the time-out.

    Raises:
      FrameError: what came is no frame.
      StalledError: it did not go on.
      ConnectionError: the peer closed the connection.
      OSError: the connection is broken.
    """
    start = bytearray(PREFIX_BYTES)
    room = memoryview(start)
    try:
        count = sock.recv_into(room, 0, socket.MSG_WAITALL)
    except BlockingIOError:
        return None
    if not count:
        raise ConnectionError("the peer closed the connection")
    receive_into(sock, room[count:])
    prefix = Prefix.decode(bytes(start))
    body = bytearray(prefix.num_bytes)
    receive_into(sock, memoryview(body))
    prefix.expect(bytes(body))
    return prefix.kind, bytes(body)


def hang_up(sock: Wire) -> None:
    """Ends a connection: calls under way on other threads come back. Its owner closes it."""
    with contextlib.suppress(OSError):  # it was not connected any more
        sock.shutdown(socket.SHUT_RDWR)


def address_of(host: str, listener: socket.socket) -> str:
    """Returns the address at which peers that know this machine as `host` reach a listener."""
    port = listener.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _after(buffers: list[memoryview], num_bytes: int) -> list[memoryview]:
    """Returns buffers, none of them empty, without their first bytes."""
    first = 0
    while first < len(buffers) and num_bytes >= buffers[first].nbytes:
        num_bytes -= buffers[first].nbytes
        first += 1
    left = buffers[first:]
    if num_bytes:
        left[0] = left[0][num_bytes:]
    return left


def _set_buffers(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
