"""Transport over sockets of its own, between any two processes and any two tiers.

Bytes travel in the canonical packed layout, with the model's true heads and without padding: the
two ends may be sharded differently. A header goes with each piece of some megabytes, however many
blocks that is. Each peer has a connection and threads of its own, so that one which is slow,
stopped or half gone keeps nobody else waiting. Neither the engine nor the control channel copies a
byte, but for small parts that are at hand: those the call gives to the kernel, as much as it takes
at once.
"""

import socket
import threading
from concurrent.futures import Future

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import MemServeError, TransferFailedError
from memserve_jax.core.types import Tier, TransferId
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.port import Port
from memserve_jax.mempool.tcp_frames import Hello
from memserve_jax.mempool.tcp_lane import Lane, LaneTerms, Parcel
from memserve_jax.mempool.tcp_listener import Listener
from memserve_jax.mempool.tcp_sending import Sending, cut
from memserve_jax.mempool.tcp_sockets import address_of, listen
from memserve_jax.mempool.tcp_tls import TlsTerms
from memserve_jax.mempool.transport import Destination, Endpoint, Payload, TransportCounters

NAME = "tcp"
JOIN_TIMEOUT_S = 2.0  # a lane may be waiting for a payload that is never computed


class TcpTransport:
    """Sockets between processes; a listener of its own on a free port."""

    def __init__(
        self,
        clock: Clock,
        *,
        host: str,
        timeout_s: float,
        has_checksums: bool = False,
        tls: TlsTerms | None = None,
    ):
        """Makes an end that listens, and takes connections from `receive` on.

        Args:
          clock: For the counters.
          host: Address of this machine that peers reach; it listens there.
          timeout_s: Of connecting, and of every wait on a peer in which nothing moves.
          has_checksums: Whether payloads carry a CRC-32, beside TCP's own checksum.
          tls: What both ends show and want, of all of them; None: plain text.

        Raises:
          OSError: nothing can listen on `host`.
        """
        self.name = NAME
        self.counters = TransportCounters()
        self._clock = clock
        self._timeout_s = timeout_s
        self._has_checksums = has_checksums
        self._tls = tls
        self._socket: socket.socket = listen(host)
        self._address = address_of(host, self._socket)
        self._port: Port | None = None
        self._listener: Listener | None = None
        self._lock = threading.Lock()
        self._lanes: dict[str, Lane] = {}
        self._is_closed = False

    @property
    def endpoint(self) -> Endpoint | None:
        """See `Transport.endpoint`."""
        return None if self._port is None else Endpoint(NAME, self._address)

    def receive(self, port: Port) -> None:
        """See `Transport.receive`."""
        self._port = port
        self._listener = Listener(self._socket, port, timeout_s=self._timeout_s, tls=self._tls)

    def refuses(self, at: Endpoint, source: Tier, target: Tier) -> str | None:
        """See `Transport.refuses`: HBM and HOST, both ways, wherever the other end is."""
        for tier in (source, target):
            if tier not in (Tier.HBM, Tier.HOST):
                return f"{source} to {target}: nothing moves from or to {tier}"
        return None

    def send(
        self, transfer_id: TransferId, part: Part, payload: Payload, to: Destination
    ) -> "Future[None]":
        """See `Transport.send`."""
        assert self._port is not None, "a pool sends after it receives"
        sending = Sending(self._clock, self._landed)
        for piece in cut(part, self._port.layout):
            parcel = Parcel(
                transfer_id=transfer_id,
                part=piece,
                payload=payload,
                first_row=piece.first_block - part.first_block,
                ticket=to.ticket,
                outcome=Future(),
                num_bytes=piece.num_bytes(self._port.layout),
            )
            sending.add(parcel)
            try:
                while not self._lane(to.endpoint.address, self._port).submit(parcel):
                    pass  # it has broken since: the next one is new
            except MemServeError as error:
                parcel.outcome.set_exception(error)
                break
        sending.complete()
        return sending.outcome

    def close(self) -> None:
        """See `Transport.close`. What is under way fails."""
        with self._lock:
            self._is_closed = True
            lanes, self._lanes = list(self._lanes.values()), {}
        for lane in lanes:
            lane.close(TransferFailedError(f"{NAME} is closing"))
        if self._listener is None:
            self._socket.close()
        else:
            self._listener.close()
        for lane in lanes:
            lane.join(JOIN_TIMEOUT_S)

    def _lane(self, address: str, port: Port) -> Lane:
        with self._lock:
            if self._is_closed:
                raise TransferFailedError(f"{NAME} is closed")
            lane = self._lanes.get(address)
            if lane is None or lane.is_over:
                hello = Hello(sender=port.instance, epoch=port.epoch, layout=port.layout)
                lane = Lane(
                    address,
                    LaneTerms(
                        hello=hello,
                        timeout_s=self._timeout_s,
                        has_checksums=self._has_checksums,
                        clock=self._clock,
                        tls=self._tls,
                    ),
                )
                over = [at for at, other in self._lanes.items() if other.is_over]
                for at in over:
                    del self._lanes[at]
                self._lanes[address] = lane
            return lane

    def _landed(self, num_bytes: int, seconds: float) -> None:
        with self._lock:
            self.counters.num_calls += 1
            self.counters.num_bytes += num_bytes
            self.counters.seconds += seconds
