"""The HTTP endpoint of a process: `/metrics` for Prometheus, `/targets` for its service discovery.

Scrapes are answered by threads of their own; what they show is read in the asyncio loop, where it
lives, and costs nothing between scrapes. An asyncio loop that does not answer in time gives 503.
"""

import asyncio
import concurrent.futures
import json
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.telemetry_sections import MetricsSection
from memserve_jax.proto.server import ANY_HOST, address
from memserve_jax.telemetry.exposition import to_registry
from memserve_jax.telemetry.metric import Metric, Reading

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

READ_TIMEOUT_S = 5.0  # what the asyncio loop gets to be read
IDLE_TIMEOUT_S = 10.0  # what a client gets to say what it wants
POLL_S = 0.05  # how often the listening thread looks whether it is to end

_log = logging.getLogger(__name__)


class MetricsEndpoint:
    """Listens from its making to `close`. Lives in the running asyncio loop."""

    def __init__(self, section: MetricsSection):
        """Listens, unless the section has no port; shows nothing yet.

        Raises:
          ConfigError: the port is in use, or the host is not of this machine.
        """
        self._loop = asyncio.get_running_loop()
        self._sources: list[Callable[[], Iterable[Reading]]] = []
        self._metrics: dict[Metric, None] = {}  # of all sources, in order
        self._targets: Callable[[], Iterable[str]] = lambda: (self.target,)
        self._server: _Server | None = None
        self.target = ""  # HOST:PORT where it can be reached; empty: nowhere
        if section.port is None:
            return
        self._server = _listen(section.host, section.port)
        self._server.set_app(self._answer)
        name = socket.gethostname() if section.host in ANY_HOST else section.host
        self.target = address(name, self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="metrics", daemon=True
        )
        self._thread.start()
        _log.info("metrics at http://%s/metrics", self.target)

    def add(self, metrics: Iterable[Metric], source: Callable[[], Iterable[Reading]]) -> None:
        """Shows what `source`, called in the asyncio loop, reads of `metrics`."""
        self._metrics |= dict.fromkeys(metrics)
        self._sources.append(source)

    def remove(self, source: Callable[[], Iterable[Reading]]) -> None:
        """Shows the readings of `source` no more."""
        self._sources.remove(source)

    def discover(self, targets: Callable[[], Iterable[str]]) -> None:
        """Has `/targets` name what `targets`, called in the asyncio loop, returns (HOST:PORT)."""
        self._targets = targets

    async def close(self) -> None:
        """Listens no more."""
        server, self._server = self._server, None
        if server is None:
            return
        await asyncio.to_thread(server.shutdown)
        self._thread.join()
        server.server_close()

    def _answer(self, environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        """Answers one request, on a thread of its own."""
        path = environ.get("PATH_INFO", "")
        try:
            if path == "/metrics":
                registry = to_registry(list(self._metrics), self._in_loop(self._read))
                return make_wsgi_app(registry)(environ, start)
            if path == "/targets":
                targets = sorted(set(self._in_loop(lambda: list(self._targets()))))
                body = json.dumps([{"targets": targets, "labels": {}}]).encode()
                return _say(start, HTTPStatus.OK, body, kind="application/json")
        except (concurrent.futures.TimeoutError, RuntimeError):  # RuntimeError: the loop is closed
            return _say(start, HTTPStatus.SERVICE_UNAVAILABLE, b"the process does not answer\n")
        except Exception:  # a scrape must not end the thread, nor go unnoticed
            _log.exception("metrics: cannot be read")
            return _say(start, HTTPStatus.INTERNAL_SERVER_ERROR, b"see the log\n")
        return _say(start, HTTPStatus.NOT_FOUND, b"allowed: /metrics, /targets\n")

    def _read(self) -> list[Reading]:
        return [reading for source in self._sources for reading in source()]

    def _in_loop(self, look: Callable[[], Any]) -> Any:
        async def looked() -> Any:
            return look()

        looking = looked()
        try:
            answer = asyncio.run_coroutine_threadsafe(looking, self._loop)
        except RuntimeError:
            looking.close()
            raise
        return answer.result(READ_TIMEOUT_S)


def _say(
    start: "StartResponse", status: HTTPStatus, body: bytes, *, kind: str = "text/plain"
) -> list[bytes]:
    start(f"{status.value} {status.phrase}", [("Content-Type", kind)])
    return [body]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each request; none of them holds the process up."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_port = False  # else a second server on the port would share it in silence

    def server_bind(self) -> None:
        """Binds, and asks no name service for the host's full name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says in the log what went wrong with one request."""
        del request
        _log.debug("metrics: a request of %s failed", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    """Says nothing of the requests, and does not wait for ever."""

    timeout = IDLE_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def _listen(host: str, port: int) -> _Server:
    """Returns a server that listens.

    Raises:
      ConfigError: it cannot.
    """
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ConfigError(
            f"metrics.host: {host!r}: {error.strerror}, allowed: a local address"
        ) from None
    family: socket.AddressFamily = found[0][0]
    place: Any = found[0][4]
    kind = type("_ServerOfFamily", (_Server,), {"address_family": family})
    try:
        return kind(place, _Handler)
    except OSError as error:
        raise ConfigError(
            f"metrics.port: {port} on {host}: {error.strerror}, allowed: a free port, 0 for any, "
            "or null for no metrics"
        ) from None
