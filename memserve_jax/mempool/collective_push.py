"""The sending end of `collective`."""

import itertools
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from jaxtyping import Array, Shaped

from memserve_jax.core.errors import MemServeError, TransferFailedError
from memserve_jax.core.types import TransferId
from memserve_jax.mempool.announce import Announcement, Announcer
from memserve_jax.mempool.collective_end import GRACE_S, NAME, CollectiveEnd, Place, Step
from memserve_jax.mempool.joined_mesh import push
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.shipment import Shipment
from memserve_jax.mempool.transport import Destination, TransportCounters

LEAVE_TRIES = 3


@dataclass(slots=True, kw_only=True, eq=False)
class _Pushing:
    """A part on its way."""

    transfer_id: TransferId
    part: Part
    payload: Shaped[Array, "n L C K S H"] | None  # None once it has entered, or failed
    to: Destination
    peer: Place
    number: int
    deadline_s: float
    steps: list[str]  # still to do: "here", "there", "enter"
    has_asked: bool = False  # the peer may hold its turn for us
    is_waiting: bool = True  # neither entered nor given up
    started_s: float = 0.0
    outcome: "Future[None]" = field(default_factory=Future)


class Pusher:
    """Takes the turns of both ends, enters. Any thread may make every call."""

    def __init__(
        self,
        end: CollectiveEnd,
        announcer: Announcer,
        counters: TransportCounters,
        timeout_s: float,
    ):
        self._end = end
        self._announcer = announcer
        self._counters = counters
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._open: set[_Pushing] = set()

    def push(
        self,
        transfer_id: TransferId,
        part: Part,
        payload: Shaped[Array, "n L C K S H"],
        to: Destination,
    ) -> "Future[None]":
        """Sends a payload that has been computed. Returns at once, as `Transport.send`."""
        peer = Place.from_address(to.endpoint.address)
        is_lower = self._end.place.process < peer.process
        pushing = _Pushing(
            transfer_id=transfer_id,
            part=part,
            payload=payload,
            to=to,
            peer=peer,
            number=next(self._numbers),
            deadline_s=self._end.clock.now_s() + self._timeout_s,
            steps=["here", "there", "enter"] if is_lower else ["there", "here", "enter"],
        )
        late = TransferFailedError(f"{NAME}: no turn in {self._timeout_s} s")
        with self._lock:
            self._open.add(pushing)
        self._end.deadlines.set(pushing, self._timeout_s, lambda: self._give_up(pushing, late))
        self._next(pushing)
        return pushing.outcome

    def close(self) -> None:
        """Gives up what has not entered."""
        with self._lock:
            pushings = list(self._open)
        for pushing in pushings:
            self._give_up(pushing, TransferFailedError(f"{NAME} is closing"))

    def _next(self, pushing: _Pushing) -> None:
        if not pushing.is_waiting:
            self._end.turns.give_back(pushing)  # it came too late
            return
        match pushing.steps.pop(0):
            case "here":
                self._end.turns.take(pushing, lambda: self._next(pushing))
            case "there":
                self._ask(pushing)
            case _:
                self._enter(pushing)

    def _ask(self, pushing: _Pushing) -> None:
        payload = pushing.payload
        if payload is None:
            return  # given up in between
        left_s = max(0.0, pushing.deadline_s - self._end.clock.now_s())
        shipment = Shipment(
            ticket=pushing.to.ticket,
            dtype=str(payload.dtype),
            shape=payload.shape,
            num_pieces=self._end.width(pushing.peer),
            timeout_s=left_s,
        )
        pushing.has_asked = True
        answer = self._announce(pushing, Step.TURN, left_s, shipment.to_bytes())
        answer.add_done_callback(lambda done: self._asked(pushing, done))

    def _asked(self, pushing: _Pushing, answer: "Future[None]") -> None:
        error = _error_of(answer)
        if error is None:
            self._next(pushing)
        else:
            self._give_up(pushing, error)

    def _enter(self, pushing: _Pushing) -> None:
        end = self._end
        with self._lock:
            if not pushing.is_waiting:
                return
            pushing.is_waiting = False
        what = f"{pushing.transfer_id}: {pushing.to.instance} did not come"
        end.deadlines.set(pushing, self._timeout_s + GRACE_S, lambda: end.fail(what))
        pushing.started_s = end.clock.now_s()
        answer = self._announce(pushing, Step.ENTER, self._timeout_s)
        end.worker.submit(self._push, pushing, answer)

    def _push(self, pushing: _Pushing, answer: "Future[None]") -> None:
        end, payload = self._end, pushing.payload
        assert payload is not None, "entered without a payload"
        pushing.payload = None
        width = end.width(pushing.peer)
        error: BaseException | None = None
        try:
            push(payload, end.place.devices(width), pushing.peer.devices(width))
        except Exception as raised:  # whatever the runtime makes of a peer that went away
            error = raised
        end.deadlines.clear(pushing)
        end.turns.give_back(pushing)
        if error is None:
            answer.add_done_callback(lambda done: self._end_with(pushing, _error_of(done)))
        else:
            self._end_with(pushing, error)

    def _give_up(self, pushing: _Pushing, error: BaseException) -> None:
        with self._lock:
            if not pushing.is_waiting:
                return
            pushing.is_waiting = False
        pushing.payload = None
        self._end.deadlines.clear(pushing)
        self._end.turns.give_back(pushing)
        if pushing.has_asked:
            self._leave(pushing, LEAVE_TRIES)
        self._end_with(pushing, error)

    def _leave(self, pushing: _Pushing, num_tries: int) -> None:
        if num_tries:
            said = self._announce(pushing, Step.LEAVE, GRACE_S)
            said.add_done_callback(
                lambda done: self._leave(pushing, num_tries - 1) if _error_of(done) else None
            )

    def _end_with(self, pushing: _Pushing, error: BaseException | None) -> None:
        with self._lock:
            self._open.discard(pushing)
            if error is None:
                self._counters.num_calls += 1
                self._counters.num_bytes += pushing.part.num_bytes(self._end.port.layout)
                self._counters.seconds += self._end.clock.now_s() - pushing.started_s
        if error is None:
            pushing.outcome.set_result(None)
        elif isinstance(error, MemServeError):
            pushing.outcome.set_exception(error)
        else:
            failed = TransferFailedError(f"{NAME}: {type(error).__name__}: {error}")
            failed.__cause__ = error
            pushing.outcome.set_exception(failed)

    def _announce(
        self, pushing: _Pushing, step: Step, timeout_s: float, text: bytes = b""
    ) -> "Future[None]":
        announcement = Announcement(
            transfer_id=pushing.transfer_id,
            transport=NAME,
            part=pushing.part,
            address=self._end.place.address,
            number=pushing.number,
            detail=b" ".join((step.encode(), text)),
        )
        return self._announcer.announce(pushing.to.instance, announcement, timeout_s=timeout_s)


def _error_of(future: "Future[None]") -> BaseException | None:
    return TransferFailedError("cancelled") if future.cancelled() else future.exception()
