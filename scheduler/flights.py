"""The requests on their way: no id twice, not too many, and what each instance was given.

Between two heartbeats this is all that the scheduler knows of an instance's load.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from memserve_jax.core.cost_model import PrefillWork
from memserve_jax.core.errors import DuplicateRequestError, OverloadedError
from memserve_jax.core.types import InstanceId, RequestId, Route


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """One request between its arrival and its end. Made by `Flights.admit` only."""

    request_id: RequestId
    route: Route | None = None  # None: not routed yet
    work: PrefillWork | None = None  # None: not routed yet, or prefilled
    has_arrived: bool = False  # the decode instance has the KV: the other may go
    on_lost: Callable[[str], None] | None = None  # told why, when an instance of it is lost
    on_prefilled: Callable[[], None] | None = None  # told of the first token, once

    @property
    def is_between(self) -> bool:
        """Whether it has its first token, and waits for a decode instance to go on."""
        route = self.route
        is_prefilled = route is not None and self.work is None and route.prefill != route.decode
        return is_prefilled and not self.has_arrived


class Flights:
    """Every request in flight through this scheduler.

    Attributes:
      changed: Instances whose counts have changed since whoever keeps columns cleared it.
      num_between: Flights that have their first token, and none of a decode instance yet.
      num_arrived: Those that a decode instance has gone on with, since the start.
    """

    def __init__(self, *, max_in_flight: int):
        """Starts empty; `max_in_flight` requests are let in at once."""
        self._max_in_flight = max_in_flight
        self._flights: dict[RequestId, Flight] = {}
        self._queued: dict[InstanceId, PrefillWork] = {}
        self._sequences: dict[InstanceId, int] = {}
        self.changed: set[InstanceId] = set()
        self.num_between = self.num_arrived = 0
        self._waiting: list[tuple[InstanceId | None, asyncio.Future[None]]] = []
        self.on_change: Callable[[], None] = lambda: None  # an instance has got more or less to do

    def __len__(self) -> int:
        return len(self._flights)

    def admit(self, request_id: RequestId) -> Flight:
        """Returns the flight of a new request; the caller lands it.

        Raises:
          DuplicateRequestError: a request of this id is in flight.
          OverloadedError: too many are.
        """
        if request_id in self._flights:
            raise DuplicateRequestError(
                f"request_id: {request_id!r} is in flight already, allowed: an id of its own"
            )
        if len(self._flights) >= self._max_in_flight:
            raise OverloadedError(
                f"{len(self._flights)} requests are in flight, allowed: "
                f"{self._max_in_flight} (scheduler.max_in_flight); try again later",
                reason="in_flight",
            )
        flight = self._flights[request_id] = Flight(request_id=request_id)
        return flight

    def depart(self, flight: Flight, route: Route, work: PrefillWork) -> None:
        """Counts the request at the instances of `route`; again after a replay elsewhere."""
        self._leave(flight)
        flight.route, flight.work, flight.has_arrived = route, work, False
        self._queued[route.prefill] = self.queued_at(route.prefill) + work
        for instance in {route.prefill, route.decode}:
            self._sequences[instance] = self.sequences_at(instance) + 1
            self.changed.add(instance)
        self.on_change()

    def recall(self, flight: Flight) -> None:
        """Counts the request nowhere: an attempt has failed, and the next one is to depart."""
        self._leave(flight)
        self.on_change()

    def prefilled(self, flight: Flight) -> None:
        """Notes the first token: the prefill instance is done. Again is the same as once."""
        if flight.work is not None and flight.on_prefilled is not None:
            flight.on_prefilled()
            flight.on_prefilled = None
        was_between = flight.is_between
        self._uncount_prefill(flight)
        self.num_between += flight.is_between - was_between
        self.on_change()

    def arrived(self, flight: Flight) -> None:
        """Notes the second token: the decode instance goes on alone."""
        was_between = flight.is_between
        self.num_between -= was_between
        self.num_arrived += was_between
        flight.has_arrived = True

    def land(self, flight: Flight) -> None:
        """Ends the flight, however it went."""
        self._leave(flight)
        del self._flights[flight.request_id]
        self._wake()
        self.on_change()

    async def when_idle(self, instance: InstanceId | None = None) -> None:
        """Returns once nothing in flight counts at `instance` (None: nothing is in flight)."""
        while not self._is_idle(instance):
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((instance, woken))
            await woken

    def queued_at(self, instance: InstanceId) -> PrefillWork:
        """Returns the prefills given to `instance` that have shown no first token."""
        return self._queued.get(instance, PrefillWork())

    def sequences_at(self, instance: InstanceId) -> int:
        """Returns how many requests in flight were given to `instance`."""
        return self._sequences.get(instance, 0)

    def lose(self, instance: InstanceId, reason: str) -> None:
        """Tells every flight that still needs `instance` that it is gone."""
        for flight in list(self._over(instance)):
            if flight.on_lost is not None:
                flight.on_lost(reason)

    def check(self) -> None:
        """Asserts that the sums are those of the flights."""
        sequences: dict[InstanceId, int] = {}
        queued: dict[InstanceId, PrefillWork] = {}
        for flight in self._flights.values():
            route = flight.route
            if route is None:
                continue
            for instance in {route.prefill, route.decode} if flight.work else {route.decode}:
                sequences[instance] = sequences.get(instance, 0) + 1
            if flight.work is not None:
                queued[route.prefill] = queued.get(route.prefill, PrefillWork()) + flight.work
        assert sequences == self._sequences, f"{sequences} flights, counted {self._sequences}"
        num_between = sum(flight.is_between for flight in self._flights.values())
        assert num_between == self.num_between, f"{num_between} wait, not {self.num_between}"
        assert queued == self._queued, f"{queued} queued, counted {self._queued}"

    def _leave(self, flight: Flight) -> None:
        if flight.route is None:
            return
        self.num_between -= flight.is_between
        self._uncount_prefill(flight)
        self._uncount(flight.route.decode)
        flight.route = None

    def _uncount_prefill(self, flight: Flight) -> None:
        if flight.work is None or flight.route is None:
            return
        instance = flight.route.prefill
        self.changed.add(instance)
        rest = self._queued[instance] - flight.work
        flight.work = None
        if rest == PrefillWork():
            del self._queued[instance]
        else:
            self._queued[instance] = rest
        if instance != flight.route.decode:
            self._uncount(instance)

    def _uncount(self, instance: InstanceId) -> None:
        self.changed.add(instance)
        self._sequences[instance] -= 1
        if not self._sequences[instance]:
            del self._sequences[instance]
            self._wake()

    def _is_idle(self, instance: InstanceId | None) -> bool:
        return not (self._flights if instance is None else self.sequences_at(instance))

    def _wake(self) -> None:
        for instance, woken in list(self._waiting):
            if woken.done() or self._is_idle(instance):
                self._waiting.remove((instance, woken))
                if not woken.done():
                    woken.set_result(None)

    def _over(self, instance: InstanceId) -> Iterator[Flight]:
        for flight in self._flights.values():
            route = flight.route
            if route is None:
                continue
            if instance == route.decode or (instance == route.prefill and not flight.has_arrived):
                yield flight
