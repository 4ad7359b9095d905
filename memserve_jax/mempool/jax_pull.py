"""The receiving end of `jax_transfer`: pulls that may hang, and the memory they hold."""

import collections
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import transfer
from jaxtyping import Array, Shaped

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import MemServeError, TransferFailedError
from memserve_jax.core.types import Tier
from memserve_jax.mempool.announce import Announcement, RespondAnnounce
from memserve_jax.mempool.port import Port
from memserve_jax.mempool.readiness import ReadinessWatch
from memserve_jax.mempool.shipment import Shipment
from memserve_jax.mempool.wire_shards import assemble, landing_specs

MAX_PULLS = 64  # from one address, those given up whose bytes may still come included


class Puller:
    """Pulls announced parts and delivers them. Any thread may make every call.

    A pull can hang for good: its sender may be stopped, or have died before it was reached. It
    holds no thread then, only the memory that its bytes would go to, and so many pulls from one
    address and no more may be in that state.
    """

    def __init__(self, port: Port, clock: Clock, start_server: Callable[[], Any]):
        """`start_server` makes the transfer server that connects to others."""
        self._port = port
        self._watch = ReadinessWatch("jax_transfer-pull", clock)
        self._server = start_server()
        self._lock = threading.Lock()
        self._connections: dict[str, transfer.TransferConnection] = {}
        self._num_pulls: collections.Counter[str] = collections.Counter()
        self._unanswered: set[_Answer] = set()

    def pull(self, announcement: Announcement, respond: RespondAnnounce) -> None:
        """See `Announced.announced`."""
        try:
            shipment = Shipment.from_bytes(announcement.detail)
            shipment.check(announcement.part, self._port)
            tier = self._port.admits(announcement.transfer_id, announcement.part, shipment.ticket)
            if tier is not Tier.HBM:
                raise TransferFailedError(f"tier: got {tier}, allowed: {Tier.HBM}")
            self._count(announcement.address)
        except MemServeError as error:
            respond(error)
            return
        answer = _Answer(respond)
        with self._lock:
            self._unanswered.add(answer)
        self._watch.watch(
            [],  # ready now: the pull starts on the watch's thread, not on the caller's
            timeout_s=shipment.timeout_s,
            on_ready=lambda _: self._start(announcement, shipment, answer),
            on_late=lambda: None,
        )

    def close(self) -> None:
        """Lets go of every pull; those not answered fail."""
        self._watch.close()
        self._connections.clear()
        with self._lock:
            unanswered = list(self._unanswered)
        for answer in unanswered:
            self._give(answer, TransferFailedError(f"{self._port.instance} is closing"))

    def _start(self, announcement: Announcement, shipment: Shipment, answer: "_Answer") -> None:
        specs = landing_specs(
            shipment.shape, shipment.dtype, shipment.num_pieces, self._port.packed_sharding
        )
        try:
            connection = self._connections.get(announcement.address)
            if connection is None:
                connection = self._server.connect(announcement.address)
                self._connections[announcement.address] = connection
            pieces = connection.pull(announcement.number, specs)
        except Exception as error:  # the address may be nonsense, memory may be out
            self._failed(announcement, answer, error)
            return
        late = TransferFailedError(f"{_name(announcement)}: not here in {shipment.timeout_s} s")
        self._watch.watch(
            pieces,
            timeout_s=shipment.timeout_s,
            on_ready=lambda error: self._pulled(announcement, pieces, answer, error),
            on_late=lambda: self._give(answer, late),
        )

    def _pulled(
        self,
        announcement: Announcement,
        pieces: list[Shaped[Array, "n L C k S H"]],
        answer: "_Answer",
        error: Exception | None,
    ) -> None:
        if error is not None:
            self._failed(announcement, answer, error)
            return
        self._uncount(announcement.address)
        if answer not in self._unanswered:
            return  # the sender has been told that it failed
        payload = jax.block_until_ready(assemble(pieces, self._port.packed_sharding))
        self._port.deliver(announcement.transfer_id, announcement.part, payload)
        self._give(answer, None)

    def _failed(self, announcement: Announcement, answer: "_Answer", error: Exception) -> None:
        self._uncount(announcement.address)
        self._connections.pop(announcement.address, None)  # it may be what is broken
        reason = f"{_name(announcement)}: {type(error).__name__}: {error}"
        self._give(answer, TransferFailedError(reason))

    def _give(self, answer: "_Answer", error: MemServeError | None) -> None:
        with self._lock:
            if answer not in self._unanswered:
                return
            self._unanswered.remove(answer)
        answer.respond(error)

    def _count(self, address: str) -> None:
        with self._lock:
            if self._num_pulls[address] >= MAX_PULLS:
                raise TransferFailedError(f"{MAX_PULLS} pulls from {address} have not ended")
            self._num_pulls[address] += 1

    def _uncount(self, address: str) -> None:
        with self._lock:
            self._num_pulls[address] -= 1
            if not self._num_pulls[address]:
                del self._num_pulls[address]


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """An answer that is given once: by the deadline, by the bytes, or at the close."""

    respond: RespondAnnounce


def _name(announcement: Announcement) -> str:
    return f"{announcement.transfer_id}: pull {announcement.number} from {announcement.address}"
