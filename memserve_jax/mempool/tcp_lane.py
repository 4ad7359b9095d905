"""A connection of the `tcp` transport as its sender sees it: parts go out, acks come back."""

import contextlib
import itertools
import logging
import queue
import socket
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import MemServeError, TransferFailedError
from memserve_jax.core.types import TransferId
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.tcp_frames import Ack, FrameError, Hello, Kind, PartHeader
from memserve_jax.mempool.tcp_rows import departing, is_at_hand
from memserve_jax.mempool.tcp_sockets import (
    StalledError,
    Wire,
    connect,
    hang_up,
    receive_frame,
    send_all,
    send_now,
)
from memserve_jax.mempool.tcp_tls import TlsTerms
from memserve_jax.mempool.transport import Payload

MAX_QUEUED_PARTS = 16384  # for one peer: a call more per side, layer and block at the most
DIRECT_BYTES = 1 << 20  # from the call itself: the kernel copies so many sooner than a thread wakes

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Parcel:
    """A part to be sent, or some rows of one."""

    transfer_id: TransferId
    part: Part
    payload: Payload | None  # None once sent
    first_row: int = 0  # of the payload, that is the part's first
    ticket: bytes
    outcome: "Future[None]"
    num_bytes: int
    sent_since_s: float | None = None  # when its first byte went out
    is_sent: bool = False  # to the last byte


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneTerms:
    """What lanes of one transport have in common."""

    hello: Hello
    timeout_s: float  # of connecting, and of every wait in which nothing moves
    has_checksums: bool  # of payloads
    clock: Clock
    tls: TlsTerms | None = None  # None: plain text


class Lane:
    """One connection to one peer, opened at once and kept until it breaks or is closed.

    A thread sends, in the order of the calls, while another takes acks: a part need not wait for
    the one before to be acknowledged. A small part that is there, and that no other is before,
    is sent by the call itself, as far as the kernel takes it at once. Whatever breaks the lane
    fails all that is on it.
    """

    def __init__(self, address: str, terms: LaneTerms):
        self._address = address
        self._terms = terms
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._open: dict[int, Parcel] = {}  # submitted, not ended, by number; oldest first
        self._num_submitted = 0
        self._num_queued = 0  # of which the thread has to send something
        self._sending = threading.Lock()  # whoever sends has it; nobody waits for it with the other
        self._rest: Iterator[list[memoryview]] = iter(())  # of a part that a call has begun
        self._is_greeted = False
        self._socket: Wire | None = None
        self._is_over = False
        name = f"tcp-to-{address}"
        self._acks = threading.Thread(target=self._take_acks, name=f"{name}-acks", daemon=True)
        self._sends = threading.Thread(target=self._run, name=name, daemon=True)
        self._sends.start()

    @property
    def is_over(self) -> bool:
        """Whether it takes no more parts."""
        return self._is_over

    def submit(self, parcel: Parcel) -> bool:
        """Sends a part after those before it; False where the lane is over.

        Raises:
          TransferFailedError: too many wait already.
        """
        with self._lock:
            if self._is_over:
                return False
            if len(self._open) >= MAX_QUEUED_PARTS:
                raise TransferFailedError(f"{len(self._open)} parts wait for {self._address}")
            number = self._num_submitted
            self._num_submitted += 1
            self._open[number] = parcel
            is_direct = self._is_direct(parcel) and self._sending.acquire(blocking=False)
            if not is_direct:
                self._num_queued += 1
                self._queue.put(number)
            sock = self._socket
        if is_direct:
            assert isinstance(sock, socket.socket), "sent by the thread"
            try:
                self._send_directly(sock, number, parcel)
            except Exception as error:  # as in the thread
                self._break(error)
            finally:
                self._sending.release()
        return True

    def close(self, error: MemServeError) -> None:
        """Ends the connection; what is on it fails with `error`. A lane that is over stays so."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            parcels, self._open = list(self._open.values()), {}
            sock = self._socket
        self._queue.put(None)
        if sock is not None:
            hang_up(sock)
        for parcel in parcels:
            _fail(parcel, error)

    def join(self, timeout_s: float) -> None:
        """Waits for the threads of a closed lane."""
        self._sends.join(timeout_s)

    def _run(self) -> None:
        try:
            sock = connect(self._address, self._terms.timeout_s, self._terms.tls)
        except MemServeError as error:
            self._break(error)
            return
        with sock:
            try:
                with self._lock:
                    self._socket = None if self._is_over else sock
                if self._socket is not None:
                    self._talk(sock)
            except Exception as error:  # whatever it is, those who wait must know
                self._break(error)
            hang_up(sock)
            if self._acks.ident is not None:
                self._acks.join()
            with self._sending:  # a call may be at it; none begins any more
                pass

    def _talk(self, sock: Wire) -> None:
        send_all(sock, [memoryview(self._terms.hello.encode())])
        self._acks.start()
        self._is_greeted = True
        while (number := self._queue.get()) is not None:
            with self._sending:
                for some in self._rest:
                    send_all(sock, some)
                self._rest = iter(())
                self._send(sock, number)
            with self._lock:
                self._num_queued -= 1

    def _send(self, sock: Wire, number: int) -> None:
        with self._lock:
            parcel = self._open.get(number)
        if parcel is None:
            return
        if parcel.sent_since_s is None:  # else a call has begun it, and that was its rest
            for some in self._prepared(number, parcel):
                send_all(sock, some)
        parcel.is_sent = True

    def _is_direct(self, parcel: Parcel) -> bool:
        """Whether the call sends a part itself. TLS and checksums would keep it for longer."""
        is_quick = isinstance(self._socket, socket.socket) and not self._terms.has_checksums
        is_next = self._is_greeted and not self._num_queued
        is_small = parcel.num_bytes <= DIRECT_BYTES
        is_there = parcel.payload is not None and is_at_hand(parcel.payload)
        return is_quick and is_next and is_small and is_there

    def _send_directly(self, sock: socket.socket, number: int, parcel: Parcel) -> None:
        buffers = self._prepared(number, parcel)
        for some in buffers:
            left = send_now(sock, some)
            if left:
                self._rest = itertools.chain([left], buffers)
                with self._lock:
                    self._num_queued += 1
                    self._queue.put(number)
                return
        parcel.is_sent = True

    def _prepared(self, number: int, parcel: Parcel) -> Iterator[list[memoryview]]:
        """Returns the frame and the bytes of a part, once its payload is there.

        Nothing where it has ended or been cancelled, or where what computed the payload failed,
        and so has the part: the peer is not to blame.
        """
        with self._lock:
            if number not in self._open:
                return
            payload, parcel.payload = parcel.payload, None
            if not parcel.outcome.set_running_or_notify_cancel():
                del self._open[number]
                return
        assert payload is not None, "a part was sent twice"
        try:
            buffers = departing(payload, parcel.part, parcel.first_row)
            checksum = None
            if self._terms.has_checksums:
                checksum = _checksum(departing(payload, parcel.part, parcel.first_row))
        except Exception as error:
            self._take(number)
            _fail(parcel, TransferFailedError(f"its payload: {type(error).__name__}: {error}"))
            return
        header = PartHeader(
            number=number,
            transfer_id=parcel.transfer_id,
            ticket=parcel.ticket,
            part=parcel.part,
            num_bytes=parcel.num_bytes,
            checksum=checksum,
        )
        frame = [memoryview(header.encode())]
        parcel.sent_since_s = self._terms.clock.now_s()
        for some in buffers:
            yield frame + some
            frame = []

    def _take_acks(self) -> None:
        sock = self._socket
        assert sock is not None, "acks before a connection"
        try:
            while not self._is_over:
                oldest = self._oldest_sent()
                frame = receive_frame(sock)
                if frame is not None:
                    self._acknowledged(*frame)
                elif oldest is not None and self._oldest_sent() == oldest:
                    raise StalledError(f"no acknowledgement in {self._terms.timeout_s} s")
        except Exception as error:  # as above
            self._break(error)

    def _acknowledged(self, kind: Kind, body: bytes) -> None:
        if kind is not Kind.ACK:
            raise FrameError(f"got {kind.name}, wanted ACK")
        ack = Ack.decode(body)
        parcel = self._take(ack.number)
        if parcel is None or parcel.sent_since_s is None:
            raise FrameError(f"part {ack.number} was acknowledged before it was sent")
        if ack.refused_because:
            _fail(parcel, TransferFailedError(f"refused: {ack.refused_because}"))
        else:
            with contextlib.suppress(InvalidStateError):  # the lane was closed meanwhile
                parcel.outcome.set_result(None)

    def _oldest_sent(self) -> int | None:
        with self._lock:
            number, parcel = next(iter(self._open.items()), (0, None))
        return number if parcel is not None and parcel.is_sent else None

    def _take(self, number: int) -> Parcel | None:
        with self._lock:
            return self._open.pop(number, None)

    def _break(self, error: Exception) -> None:
        if not self._is_over:
            _log.info("tcp to %s: %s", self._address, error)
        self.close(TransferFailedError(f"tcp to {self._address}: {error}"))


def _fail(parcel: Parcel, error: MemServeError) -> None:
    parcel.payload = None
    with contextlib.suppress(InvalidStateError):  # it has ended, one way or the other
        parcel.outcome.set_exception(error)


def _checksum(buffers: Iterator[list[memoryview]]) -> int:
    checksum = 0
    for buffer in itertools.chain.from_iterable(buffers):
        checksum = zlib.crc32(buffer, checksum)
    return checksum
