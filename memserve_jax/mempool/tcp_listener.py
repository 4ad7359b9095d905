"""The receiving end of the `tcp` transport: a thread for each connection, and bounds on all."""

import logging
import socket
import threading
import zlib

from memserve_jax.core.errors import TransferFailedError, WrongTicketError
from memserve_jax.core.types import Tier
from memserve_jax.mempool.port import Port
from memserve_jax.mempool.tcp_frames import Ack, FrameError, Hello, Kind, PartHeader
from memserve_jax.mempool.tcp_rows import Landing
from memserve_jax.mempool.tcp_sockets import (
    StalledError,
    Wire,
    hang_up,
    receive_frame,
    receive_into,
    send_all,
    tune,
)
from memserve_jax.mempool.tcp_tls import TlsSocket, TlsTerms, answer

MAX_CONNECTIONS = 256
MAX_SKIPPED_BYTES = 4 << 30  # of a part that is refused: its sender may be on the way of giving up
SKIP_BYTES = 1 << 18

_log = logging.getLogger(__name__)


class Listener:
    """Takes connections for a port. A peer that misbehaves loses its own connection only."""

    def __init__(
        self,
        listener: socket.socket,
        port: Port,
        *,
        timeout_s: float,
        tls: TlsTerms | None = None,
    ):
        """Starts to accept; owns the listening socket from now on.

        Args:
          listener: Listens.
          port: Of the pool that the bytes are for.
          timeout_s: How long a peer may be silent within a frame or a payload.
          tls: What a peer must show; None: plain text.
        """
        self._listener = listener
        self._port = port
        self._timeout_s = timeout_s
        self._tls = tls
        self._lock = threading.Lock()
        self._connections: dict[Wire, threading.Thread] = {}
        self._is_closed = False
        self._accepts = threading.Thread(
            target=self._accept, name=f"tcp-{port.instance}", daemon=True
        )
        self._accepts.start()

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        with self._lock:
            return len(self._connections)

    def close(self) -> None:
        """Ends every connection; parts that are half here are dropped."""
        with self._lock:
            self._is_closed = True
            connections = dict(self._connections)
        hang_up(self._listener)
        for sock in connections:
            hang_up(sock)
        for thread in (self._accepts, *connections.values()):
            thread.join(self._timeout_s)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if not self._is_closed:
                    _log.warning("tcp: %s takes no more: %s", self._port.instance, error)
                return
            try:
                tune(sock, self._timeout_s)
                wire = sock if self._tls is None else answer(sock, self._tls, self._timeout_s)
            except OSError as error:  # it has gone already
                _log.debug("tcp: %s: %s", self._port.instance, error)
                sock.close()
                continue
            self._welcome(wire)

    def _welcome(self, sock: Wire) -> None:
        thread = threading.Thread(
            target=self._serve, args=(sock,), name=self._accepts.name, daemon=True
        )
        with self._lock:
            is_welcome = not self._is_closed and len(self._connections) < MAX_CONNECTIONS
            if is_welcome:
                self._connections[sock] = thread
        if is_welcome:
            thread.start()
        else:
            _log.warning("tcp: %s has too many connections", self._port.instance)
            sock.close()

    def _serve(self, sock: Wire) -> None:
        who = "a stranger"
        try:
            if isinstance(sock, TlsSocket):
                assert self._tls is not None
                sock.shake_hands(self._tls.name)
            hello = self._greet(sock)
            who = f"{hello.sender} epoch {hello.epoch}"
            while True:
                frame = receive_frame(sock)
                if frame is not None:
                    self._take(sock, *frame)
        except ConnectionError:
            _log.debug("tcp: %s of %s has gone", who, self._port.instance)
        except Exception as error:  # whatever it is, it is the end of this connection only
            if not self._is_closed:
                _log.warning("tcp: %s hangs up on %s: %s", self._port.instance, who, error)
        finally:
            with self._lock:
                del self._connections[sock]
            hang_up(sock)
            sock.close()

    def _greet(self, sock: Wire) -> Hello:
        frame = receive_frame(sock)
        if frame is None:
            raise StalledError("it does not say who it is")
        kind, body = frame
        if kind is not Kind.HELLO:
            raise FrameError(f"got {kind.name}, wanted HELLO")
        hello = Hello.decode(body)
        if hello.layout != self._port.layout:
            raise FrameError(f"its KV is {hello.layout}, here it is {self._port.layout}")
        return hello

    def _take(self, sock: Wire, kind: Kind, body: bytes) -> None:
        """Takes one part in; acknowledges it once it lies where it stays, or refused."""
        if kind is not Kind.PART:
            raise FrameError(f"got {kind.name}, wanted PART")
        header, port = PartHeader.decode(body), self._port
        wanted_bytes = header.part.num_bytes(port.layout)
        if header.num_bytes != wanted_bytes:
            raise FrameError(f"got {header.num_bytes} bytes for a part of {wanted_bytes}")
        try:
            tier = port.admits(header.transfer_id, header.part, header.ticket)
        except WrongTicketError:
            raise
        except TransferFailedError as error:
            # Its transfer may have ended here a moment ago: others on the connection go on.
            _log.info("tcp: %s", error)
            _skip(sock, header.num_bytes)
            _acknowledge(sock, Ack(number=header.number, refused_because=str(error)))
            return
        sharding = port.packed_sharding if tier is Tier.HBM else None
        landing = Landing(header.part, port.layout, sharding)
        _fill(landing, sock, header)
        landing.settle()
        # The sender need not wait for what is left to do here; its commit will, if it comes first.
        _acknowledge(sock, Ack(number=header.number))
        port.deliver(header.transfer_id, header.part, landing.landed())


def _fill(landing: Landing, sock: Wire, header: PartHeader) -> None:
    checksum = 0
    for room in landing.rooms():
        receive_into(sock, room)
        if header.checksum is not None:
            checksum = zlib.crc32(room, checksum)
    if header.checksum not in (None, checksum):
        raise FrameError(f"{header.transfer_id}: {header.part} was damaged on its way")


def _acknowledge(sock: Wire, ack: Ack) -> None:
    send_all(sock, [memoryview(ack.encode())])


def _skip(sock: Wire, num_bytes: int) -> None:
    if num_bytes > MAX_SKIPPED_BYTES:
        raise FrameError(f"{num_bytes} bytes that nobody expects")
    room = memoryview(bytearray(min(num_bytes, SKIP_BYTES)))
    while num_bytes:
        count = min(num_bytes, SKIP_BYTES)
        receive_into(sock, room[:count])
        num_bytes -= count
