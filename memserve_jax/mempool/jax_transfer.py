"""Transport between processes by `jax.experimental.transfer`: the receiver pulls.

The sender offers a part's bytes under a number, and announces them; the receiver pulls, puts
them where its pool wants them, delivers, and answers the announcement. What JAX leaves open is
done here, as found by trying on 0.10.2 and 0.11.2:

- A number is good for one pull, in the life of a server: each starts from its own random one.
- What nobody pulls stays in memory for good; so does the puller's wait. `await_pull(number, [])`
  with a time-out that is over lets go of the bytes and fails the puller.
- A puller that is stopped in the middle of a pull stalls every pull of that server, whoever pulls:
  so there is a server for each peer.
- A pull may hang for good, and its own time-out does not help: see `jax_pull.py`.
"""

import datetime
import itertools
import secrets
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import transfer
from jaxtyping import Array, Shaped

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import MemServeError, TransferFailedError
from memserve_jax.core.types import InstanceId, Tier, TransferId
from memserve_jax.mempool.announce import Announcement, Announcer, RespondAnnounce
from memserve_jax.mempool.jax_pull import Puller
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.port import Port
from memserve_jax.mempool.readiness import ReadinessWatch
from memserve_jax.mempool.shipment import Shipment
from memserve_jax.mempool.transport import Destination, Endpoint, Payload, TransportCounters
from memserve_jax.mempool.wire_shards import devices_of, pieces_of

NAME = "jax_transfer"
CHUNK_BYTES = 1 << 20  # of what a server stages at a time: more is slower, and holds more memory


@dataclass(slots=True, kw_only=True, eq=False)
class _Sending:
    """A part on its way."""

    transfer_id: TransferId
    part: Part
    payload: Shaped[Array, "n L C K S H"] | None  # None from the offer on
    to: Destination
    outcome: "Future[None]"
    deadline_s: float
    number: int
    server: Any = None
    started_s: float = 0.0


class JaxTransferTransport:
    """Device memory to device memory of another process. HBM to HBM only."""

    def __init__(self, announcer: Announcer, clock: Clock, *, host: str, timeout_s: float):
        """Makes an end that neither sends nor receives before `receive`.

        Args:
          announcer: Carries the announcements.
          clock: For deadlines and counters.
          host: Address of this machine that peers reach.
          timeout_s: How long a part may take, the wait for its payload included.
        """
        self.name = NAME
        self.counters = TransportCounters()
        self._announcer = announcer
        self._clock = clock
        self._host = host
        self._timeout_s = timeout_s
        self._port: Port | None = None
        self._puller: Puller | None = None
        self._watch = ReadinessWatch("jax_transfer-send", clock)
        self._numbers = itertools.count(secrets.randbits(62))
        self._lock = threading.Lock()
        self._servers: dict[InstanceId, Any] = {}
        self._sendings: set[_Sending] = set()
        self._is_closed = False

    @property
    def endpoint(self) -> Endpoint | None:
        """See `Transport.endpoint`. The address is the runtime: both ends need the same one."""
        return None if self._port is None else Endpoint(NAME, _runtime(self._port))

    def receive(self, port: Port) -> None:
        """See `Transport.receive`."""
        self._port = port
        self._puller = Puller(port, self._clock, self._start_server)

    def refuses(self, at: Endpoint, source: Tier, target: Tier) -> str | None:
        """See `Transport.refuses`."""
        if (source, target) != (Tier.HBM, Tier.HBM):
            return f"{source} to {target}: only {Tier.HBM} to {Tier.HBM}"
        here = "no pool" if self._port is None else _runtime(self._port)
        return None if at.address == here else f"it runs {at.address}, this end {here}"

    def send(
        self, transfer_id: TransferId, part: Part, payload: Payload, to: Destination
    ) -> "Future[None]":
        """See `Transport.send`."""
        sending = _Sending(
            transfer_id=transfer_id,
            part=part,
            payload=payload if isinstance(payload, jax.Array) else None,
            to=to,
            outcome=Future(),
            deadline_s=self._clock.now_s() + self._timeout_s,
            number=next(self._numbers),
        )
        with self._lock:
            self._sendings.add(sending)
            is_closed = self._is_closed
        if is_closed or sending.payload is None:
            reason = "it is closed" if is_closed else "the payload is not in HBM"
            self._end(sending, TransferFailedError(f"{NAME}: {reason}"))
            return sending.outcome
        late = TransferFailedError(f"its payload was not computed in {self._timeout_s} s")
        self._watch.watch(
            [sending.payload],
            timeout_s=self._timeout_s,
            on_ready=lambda error: self._offer(sending, error),
            on_late=lambda: self._end(sending, late),
        )
        return sending.outcome

    def announced(self, announcement: Announcement, respond: RespondAnnounce) -> None:
        """See `Announced.announced`."""
        if self._puller is None:
            respond(TransferFailedError(f"{NAME}: no pool takes bytes here"))
        else:
            self._puller.pull(announcement, respond)

    def close(self) -> None:
        """See `Transport.close`. Sendings under way fail; pulls are let go."""
        with self._lock:
            self._is_closed = True
        self._watch.close()
        if self._puller is not None:
            self._puller.close()
        with self._lock:
            sendings = list(self._sendings)
        for sending in sendings:
            self._end(sending, TransferFailedError(f"{NAME} is closing"))
        with self._lock:
            self._servers.clear()

    def _offer(self, sending: _Sending, error: Exception | None) -> None:
        payload, sending.payload = sending.payload, None
        if sending.outcome.done():
            return
        if error is not None:
            self._end(sending, TransferFailedError(f"the payload: {error}"))
            return
        assert payload is not None, "offered twice"
        left_s = sending.deadline_s - self._clock.now_s()
        pieces = pieces_of(payload)
        shipment = Shipment(
            ticket=sending.to.ticket,
            dtype=str(payload.dtype),
            shape=payload.shape,
            num_pieces=len(pieces),
            timeout_s=left_s,
        )
        sending.started_s = self._clock.now_s()
        sending.server = server = self._server_for(sending.to.instance)
        server.await_pull(sending.number, pieces)
        announcement = Announcement(
            transfer_id=sending.transfer_id,
            transport=NAME,
            part=sending.part,
            address=server.address(),
            number=sending.number,
            detail=shipment.to_bytes(),
        )
        answer = self._announcer.announce(sending.to.instance, announcement, timeout_s=left_s)
        answer.add_done_callback(lambda done: self._answered(sending, done))

    def _answered(self, sending: _Sending, answer: "Future[None]") -> None:
        error = TransferFailedError("cancelled") if answer.cancelled() else answer.exception()
        if error is None:
            sending.server = None  # pulled: there is nothing to let go of
        self._end(sending, error)

    def _end(self, sending: _Sending, error: BaseException | None) -> None:
        with self._lock:
            if sending not in self._sendings:
                return
            self._sendings.remove(sending)
            if error is None and self._port is not None:
                self.counters.num_calls += 1
                self.counters.num_bytes += sending.part.num_bytes(self._port.layout)
                self.counters.seconds += self._clock.now_s() - sending.started_s
            if error is not None and self._servers.get(sending.to.instance) is sending.server:
                self._servers.pop(sending.to.instance, None)  # its connection may be what is stuck
        if sending.server is not None:
            sending.server.await_pull(sending.number, [], timeout=datetime.datetime.now())
        if error is None:
            sending.outcome.set_result(None)
        elif isinstance(error, MemServeError):
            sending.outcome.set_exception(error)
        else:
            failed = TransferFailedError(f"{type(error).__name__}: {error}")
            failed.__cause__ = error
            sending.outcome.set_exception(failed)

    def _server_for(self, peer: InstanceId) -> Any:
        with self._lock:
            server = self._servers.get(peer)
            if server is None:
                self._servers[peer] = server = self._start_server()
            return server

    def _start_server(self) -> Any:
        assert self._port is not None
        client = devices_of(self._port.packed_sharding)[0].client
        here = f"{self._host}:0"
        return transfer.start_transfer_server(client, here, [here], transfer_size=CHUNK_BYTES)


def _runtime(port: Port) -> str:
    return f"jax {jax.__version__} on {devices_of(port.packed_sharding)[0].platform}"
