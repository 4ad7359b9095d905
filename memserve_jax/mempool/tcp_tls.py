"""TLS under the connections of the `tcp` transport, of which one thread sends and one receives.

OpenSSL takes one call at a time of a connection, and a receive may take long. So no call waits
inside of it: the socket does not block, and whoever cannot go on gives the lock back and waits
for the kernel.
"""

import select
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from memserve_jax.core.tls_files import TlsFiles

SEND_BYTES = 1 << 20  # given to OpenSSL at a time: the lock is held no longer than for those


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsTerms:
    """What both ends show and want."""

    files: TlsFiles
    name: str | None = None  # in every certificate; None: a server's is for its address


class TlsSocket:
    """A connection that is used as a socket is, less what nobody needs. Its owner closes it."""

    def __init__(self, sock: ssl.SSLSocket, timeout_s: float):
        """Owns `sock`; every wait in which nothing moves ends after `timeout_s`."""
        self._socket = sock
        self._timeout_s = timeout_s
        self._lock = threading.Lock()

    def shake_hands(self, name: str | None) -> None:
        """Agrees with the other end, as the first call of all.

        Args:
          name: What a certificate that the other end shows must be for, where that is not
            checked already.

        Raises:
          OSError: it shows no good certificate, or speaks no TLS, or nothing.
        """
        self._socket.settimeout(self._timeout_s)
        self._socket.do_handshake()
        shown = self._socket.getpeercert()
        if name is not None and shown:
            pairs = [pair for pair in shown.get("subjectAltName", ()) if len(pair) == 2]
            if ("DNS", name) not in pairs:
                raise ssl.SSLCertVerificationError(f"its certificate is not for {name}")
        self._socket.setblocking(False)

    def sendmsg(self, buffers: Sequence[memoryview]) -> int:
        """Sends some of the first buffer, and returns how many bytes.

        Raises:
          BlockingIOError: the peer takes nothing.
          OSError: the connection is broken.
        """
        piece = buffers[0][:SEND_BYTES]
        while True:
            try:
                with self._lock:
                    return self._socket.send(piece)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)

    def recv_into(self, room: memoryview, num_bytes: int = 0, flags: int = 0) -> int:
        """Fills some of `room`, and returns how many bytes; 0 where the peer has closed.

        Args:
          room: Where to.
          num_bytes: As of a socket; not used.
          flags: As of a socket; not used: what has come is given.

        Raises:
          BlockingIOError: nothing came.
          OSError: the connection is broken.
        """
        del num_bytes, flags
        while True:
            try:
                with self._lock:
                    return self._socket.recv_into(room)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)

    def shutdown(self, how: int) -> None:
        """As of a socket: calls on other threads come back."""
        # Not the SSLSocket's own: that one goes on in plain text.
        socket.socket.shutdown(self._socket, how)

    def close(self) -> None:
        """As of a socket."""
        self._socket.close()

    def __enter__(self) -> "TlsSocket":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._socket.fileno(), event)
        if not poll.poll(self._timeout_s * 1000):
            raise BlockingIOError("nothing moves")


def dial(sock: socket.socket, terms: TlsTerms, host: str, timeout_s: float) -> TlsSocket:
    """Returns an encrypted connection over `sock`, connected to `host`, which is its own now.

    Raises:
      OSError: the other end shows no good certificate, or speaks no TLS; `sock` is closed.
    """
    context = terms.files.material().as_client
    wrapped = TlsSocket(
        context.wrap_socket(
            sock, server_hostname=terms.name or host, do_handshake_on_connect=False
        ),
        timeout_s,
    )
    try:
        wrapped.shake_hands(None)  # the name is the context's to check
    except OSError:
        wrapped.close()
        raise
    return wrapped


def answer(sock: socket.socket, terms: TlsTerms, timeout_s: float) -> TlsSocket:
    """Returns an encrypted connection over `sock`, accepted, which is its own now.

    The owner shakes hands, on a thread that may wait.
    """
    context = terms.files.material().as_server
    return TlsSocket(
        context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), timeout_s
    )
