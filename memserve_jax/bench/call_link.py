"""Calls between two processes of a measurement over one socket, both ways at once."""

import contextlib
import itertools
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.mempool.deadlines import Deadlines

Respond = Callable[[object], None]  # the answer, or the exception that is the answer
Serve = Callable[[str, tuple[Any, ...], Respond], None]

_log = logging.getLogger(__name__)


class CallLink:
    """One connection. Any thread may call; answers come on the link's own thread."""

    def __init__(self, connection: Connection, serve: Serve):
        """`serve(kind, arguments, respond)` answers the peer's calls, on the link's thread."""
        self._connection = connection
        self._serve = serve
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Any]] = {}
        self._deadlines = Deadlines("call-link-deadlines", SystemClock())
        self.is_over = threading.Event()  # the peer has gone, or this end was closed
        self._thread = threading.Thread(target=self._run, name="call-link", daemon=True)
        self._thread.start()

    def call(self, kind: str, *arguments: object, timeout_s: float) -> "Future[Any]":
        """Asks the peer; fails with `TransferFailedError` if it has gone or is too slow."""
        number, future = next(self._numbers), Future[Any]()
        self._waiting[number] = future
        late = TransferFailedError(f"{kind}: no answer in {timeout_s} s")
        self._deadlines.set(number, timeout_s, lambda: self._settle(number, late))
        if self.is_over.is_set() or not self._send(("call", number, kind, arguments)):
            self._settle(number, TransferFailedError(f"{kind}: the peer has gone"))
        return future

    def close(self) -> None:
        """Ends the link; calls under way fail."""
        self.is_over.set()
        if not self._connection.closed:
            # Wakes the thread: a descriptor closed under it could be another's when it reads on.
            with (
                socket.fromfd(self._connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end,
                contextlib.suppress(OSError),
            ):  # the peer has gone already
                end.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._connection.close()
        self._deadlines.close()

    def _run(self) -> None:
        try:
            while True:
                what, number, *rest = self._connection.recv()
                if what == "call":
                    self._answer(number, rest[0], rest[1])
                else:
                    self._settle(number, rest[0])
        except (EOFError, OSError):
            self.is_over.set()
        for number in list(self._waiting):
            self._settle(number, TransferFailedError("the peer has gone"))

    def _answer(self, number: int, kind: str, arguments: tuple[Any, ...]) -> None:
        respond = self._responder(number)
        try:
            self._serve(kind, arguments, respond)
        except Exception as error:  # the caller's trouble, not the link's
            _log.exception("%s failed", kind)
            respond(error)

    def _responder(self, number: int) -> Respond:
        def respond(answer: object) -> None:
            self._send(("answer", number, answer))

        return respond

    def _settle(self, number: int, answer: object) -> None:
        future = self._waiting.pop(number, None)
        self._deadlines.clear(number)
        if future is None:
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _send(self, message: tuple[object, ...]) -> bool:
        try:
            with self._sending:
                self._connection.send(message)
        except (OSError, ValueError):
            return False
        return True
