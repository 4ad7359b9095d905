"""The gate in front of the instances: who comes waits there until an instance has room for it.

An instance is given work for a while ahead, and no more: who waits here can still go in fair
order, to whichever instance is free first, or be refused in time. All calls: in the loop.
"""

import asyncio
import collections
import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass

from memserve_jax.core.clock import Clock
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.errors import OverloadedError
from memserve_jax.core.types import InstanceId, Request
from scheduler.admission import Limits, Outlook, no_place, refusal
from scheduler.fair_queue import FairQueue, Place
from scheduler.flights import Flight
from scheduler.rooms import Rooms

OUTPUT_WEIGHT = 2.0  # of a token decoded beside one prefilled, as in VTC (arXiv 2401.00588)
TURNS_KEPT = 32  # their times give the pace
LEAST_TURNS = 8  # that make a pace: a stall between fewer, as to compile, foretells nothing


class Stage(enum.StrEnum):
    """Where a request is."""

    WAITING = "waiting"
    CALLED = "called"  # it is its turn; it has not been sent yet
    GONE = "gone"  # it has been sent to an instance, or refused
    LEFT = "left"


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """One request at the gate. Made by `Gate.enter`."""

    request: Request
    flight: Flight
    tenant: str
    deadline_s: float | None  # of its client, on the scheduler's clock; None: none
    on_turn: Callable[[OverloadedError | None], None]  # it may go; or why it never will
    stage: Stage = Stage.WAITING
    place: Place["Ticket"] | None = None  # while it waits
    is_charged: bool = False  # its cost is on its tenant's account

    @property
    def cost(self) -> float:
        """Of serving it at most, in tokens."""
        sampling = self.request.sampling
        return len(self.request.prompt_token_ids) + OUTPUT_WEIGHT * sampling.max_tokens


class Gate:
    """Who may go to the instances, and when."""

    def __init__(self, section: SchedulerSection, rooms: Rooms, clock: Clock):
        """Opens without anybody waiting.

        Args:
          section: Bounds, shares and promises.
          rooms: Knows how busy the instances are.
          clock: Of arrivals.
        """
        self._limits = Limits.of(section)
        self._by = section.fairness.by
        self._rooms = rooms
        self._clock = clock
        self._queue: FairQueue[Ticket] = FairQueue(
            weights=section.fairness.weights, patience_s=section.queue.patience_s
        )
        self._called: set[Ticket] = set()
        self._turns_s: collections.deque[float] = collections.deque(maxlen=TURNS_KEPT)
        self._is_calling = False

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def turn_s(self) -> float:
        """Returns the seconds until it would be the turn of one who came now; 0: nobody waits."""
        if not self._queue:
            return 0.0
        if len(self._turns_s) < LEAST_TURNS:  # no pace yet: at least as long as others so far
            return self._clock.now_s() - min(place.since_s for place in self._queue)
        return len(self._queue) * self._interval_s(0.0)

    def enter(
        self,
        request: Request,
        flight: Flight,
        on_turn: Callable[[OverloadedError | None], None],
        *,
        time_left_s: float | None,
        label: str = "",
    ) -> Ticket:
        """Takes a request in; whoever does lets it leave. `on_turn` may be called meanwhile.

        Args:
          request: What is asked.
          flight: Its own.
          on_turn: Told that it may go, or why it never will.
          time_left_s: Of its client; None: for ever.
          label: Of the key that its client has shown; empty: none.

        Raises:
          OverloadedError: it would wait too long, or too many wait; it has not entered.
        """
        if not self._queue:
            self._turns_s.clear()  # till now the pace was that of arrivals
        now_s = self._clock.now_s()
        tenant = tenant_of(request, self._by, label=label)
        deadline_s = None if time_left_s is None else now_s + time_left_s
        ticket = Ticket(
            request=request, flight=flight, tenant=tenant, deadline_s=deadline_s, on_turn=on_turn
        )
        num_ahead = self._queue.num_ahead(tenant, request.priority)
        must_wait = len(self._queue) > 0 or not self._has_room()
        error = self._refusal(ticket, num_ahead, must_wait=must_wait)
        if must_wait and error is None:
            outlook = self._outlook(ticket, num_ahead)
            error = no_place(outlook, self._limits, name=request.request_id)
        if error is not None:
            raise error
        if not must_wait:  # nor is anything put on its tenant's account: nobody else wants it
            self._go(ticket)
            return ticket
        ticket.place = self._queue.push(
            ticket, tenant=tenant, priority=request.priority, cost=ticket.cost, now_s=now_s
        )
        self.call()
        return ticket

    def leave(self, ticket: Ticket, *, num_output: int = 0) -> None:
        """Lets a request go for good, wherever it is. Again is the same as once.

        Args:
          ticket: Its own.
          num_output: Tokens of its answer: what it did not use goes back to its tenant.
        """
        if ticket.stage is Stage.LEFT:
            return
        if ticket.place is not None:
            self._queue.remove(ticket.place)
            ticket.place = None
        if ticket.is_charged:
            unused = ticket.request.sampling.max_tokens - num_output
            self._queue.charge(ticket.tenant, -OUTPUT_WEIGHT * max(0, unused))
        self._called.discard(ticket)
        ticket.stage = Stage.LEFT
        self.call()

    def call(self) -> None:
        """Calls who may go now. Call it whenever an instance may have got room."""
        if self._is_calling or not (self._queue or self._called):
            return
        self._is_calling = True
        try:
            self._call()
        finally:
            self._is_calling = False

    def expire(self) -> None:
        """Refuses those that have waited so long that they cannot be served in time any more."""
        for place in self._queue:
            self._refuse_if_late(place)
        self.call()

    def full(self) -> frozenset[InstanceId]:
        """Returns the instances that a plan had better avoid; none where all are full."""
        full = self._rooms.full()
        return full if full and self._rooms.has_room(0) else frozenset()

    def refuse_if_busy(self) -> None:
        """Does nothing where a request could go at once: who is only told where, does not wait.

        Raises:
          OverloadedError: others wait.
        """
        if self._queue:
            interval_s = self._interval_s(0.0)
            after_s = max(0.05, len(self._queue) * interval_s)
            raise OverloadedError(
                f"{len(self._queue)} requests wait, allowed: 0 for a route without a place in "
                f"the queue; try again in {after_s:.2f} s",
                reason="waiting",
                retry_after_s=after_s,
            )

    def check(self) -> None:
        """Asserts that everyone who entered is in one place."""
        self._queue.check()
        for place in self._queue:
            assert place.item.place is place and place.item.stage is Stage.WAITING
        assert all(ticket.stage is Stage.CALLED for ticket in self._called)

    def _call(self) -> None:
        for ticket in list(self._called):
            self._note_if_gone(ticket)
        while (place := self._queue.first(self._clock.now_s())) and self._has_room():
            if self._refuse_if_late(place):
                continue
            ticket = place.item
            self._queue.serve(place)
            ticket.place, ticket.is_charged = None, True
            self._turns_s.append(self._clock.now_s())
            self._go(ticket)

    def _go(self, ticket: Ticket) -> None:
        ticket.stage = Stage.CALLED
        self._called.add(ticket)
        ticket.on_turn(None)
        self._note_if_gone(ticket)

    def _note_if_gone(self, ticket: Ticket) -> None:
        """Notes that a request has been sent, and what is predicted of its first token."""
        route = ticket.flight.route
        if route is None or ticket.stage is not Stage.CALLED:
            return
        ticket.stage = Stage.GONE
        self._called.discard(ticket)
        sent_s, predicted_s = self._clock.now_s(), self._rooms.predicted_s(route.prefill)

        def learn() -> None:
            self._rooms.learn(predicted_s, self._clock.now_s() - sent_s)

        ticket.flight.on_prefilled = learn

    def _refuse_if_late(self, place: Place[Ticket]) -> bool:
        ticket = place.item
        error = self._refusal(ticket, 0, waited_s=self._clock.now_s() - place.since_s)
        if error is None:
            return False
        self._queue.remove(place)
        ticket.place, ticket.stage = None, Stage.GONE
        ticket.on_turn(error)
        return True

    def _has_room(self) -> bool:
        return self._rooms.has_room(len(self._called))

    def _refusal(
        self, ticket: Ticket, num_ahead: int, *, must_wait: bool = False, waited_s: float = 0.0
    ) -> OverloadedError | None:
        """Returns why a request cannot be served in time; None: it can, or nothing is promised.

        What is cached is looked up only where it decides.
        """
        deadline_s = ticket.deadline_s if self._limits.honours_deadlines else None
        if self._limits.ttft_s is None and deadline_s is None:
            return None
        left_s = None if deadline_s is None else deadline_s - self._clock.now_s()
        error = None
        for looks_up in (False, True):
            outlook = self._outlook(ticket, num_ahead, waited_s=waited_s, looks_up=looks_up)
            if must_wait and not outlook.wait_s:  # for rows, not for prefills: at least a turn
                outlook = dataclasses.replace(outlook, num_ahead=1)
            name = ticket.request.request_id
            error = refusal(outlook, self._limits, name=name, time_left_s=left_s)
            if error is None:
                break
        return error

    def _outlook(
        self, ticket: Ticket, num_ahead: int, *, waited_s: float = 0.0, looks_up: bool = False
    ) -> Outlook:
        service_s, busy_s = self._rooms.expected_s(ticket.request, looks_up=looks_up)
        return Outlook(
            num_waiting=len(self._queue),
            num_of_tenant=self._queue.num_of(ticket.tenant),
            num_ahead=num_ahead,
            interval_s=self._interval_s(service_s - busy_s),
            service_s=service_s,
            busy_s=max(busy_s, waited_s),
            waited_s=waited_s,
        )

    def _interval_s(self, prefill_s: float) -> float:
        """Returns the seconds between two turns: as of late, or as predicted.

        Time that passes without a turn counts: instances that stand still make the queue long.
        """
        num_turns = len(self._turns_s)
        if num_turns < LEAST_TURNS:
            return prefill_s / max(1, self._rooms.num_prefillers)
        return (self._clock.now_s() - self._turns_s[0]) / num_turns


def tenant_of(request: Request, by: str, *, label: str) -> str:
    """Returns on whose account a request goes: "" is everybody's who names no tenant.

    Args:
      request: What is asked.
      by: What the config says.
      label: Of the key that its client has shown; empty: none.
    """
    match by:
        case "key":
            return label or request.cache_salt
        case "cache_salt":
            return request.cache_salt
        case "session_id":
            return request.session_id
        case _:
            return ""


async def await_turn(
    gate: Gate, request: Request, flight: Flight, *, time_left_s: float | None, label: str = ""
) -> Ticket:
    """Returns once it is the request's turn, at once where nobody waits. The caller has it leave.

    Raises:
      OverloadedError: it cannot be served in time, or too many wait.
    """
    turn: asyncio.Future[OverloadedError | None] = asyncio.get_running_loop().create_future()

    def on_turn(error: OverloadedError | None) -> None:
        if not turn.done():
            turn.set_result(error)

    ticket = gate.enter(request, flight, on_turn, time_left_s=time_left_s, label=label)
    try:
        error = await turn
        if error is not None:
            raise error
    except BaseException:
        gate.leave(ticket)
        raise
    return ticket
