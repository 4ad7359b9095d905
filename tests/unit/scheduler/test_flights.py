"""Requests in flight: no id twice, a bound, and sums that are those of the flights."""

import asyncio

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from memserve_jax.core.cost_model import PrefillWork
from memserve_jax.core.errors import DuplicateRequestError, OverloadedError
from memserve_jax.core.types import InstanceId, RequestId, Route
from scheduler.flights import Flights
from tests.helpers.scheduling import in_loop

P0, D0, C0 = InstanceId("p0"), InstanceId("d0"), InstanceId("c0")
WORK = PrefillWork.of(100, 16)
ROUTE = Route(prefill=P0, decode=D0)


def test_an_id_in_flight_is_refused_until_it_lands():
    flights = Flights(max_in_flight=10)
    flight = flights.admit(RequestId("r"))
    with pytest.raises(DuplicateRequestError, match=r"request_id: 'r' is in flight"):
        flights.admit(RequestId("r"))
    flights.land(flight)
    flights.land(flights.admit(RequestId("r")))
    assert len(flights) == 0


def test_the_bound_refuses_with_numbers():
    flights = Flights(max_in_flight=1)
    flight = flights.admit(RequestId("a"))
    with pytest.raises(OverloadedError, match=r"1 requests are in flight, allowed: 1"):
        flights.admit(RequestId("b"))
    flights.land(flight)
    flights.admit(RequestId("b"))


def test_work_counts_until_the_first_token_and_sequences_while_they_are_there():
    flights = Flights(max_in_flight=10)
    flight = flights.admit(RequestId("r"))
    flights.depart(flight, ROUTE, WORK)
    assert (flights.queued_at(P0), flights.queued_at(D0)) == (WORK, PrefillWork())
    assert (flights.sequences_at(P0), flights.sequences_at(D0)) == (1, 1)
    flights.prefilled(flight)
    flights.prefilled(flight)
    assert flights.queued_at(P0) == PrefillWork()
    assert (flights.sequences_at(P0), flights.sequences_at(D0)) == (0, 1)
    flights.land(flight)
    assert flights.sequences_at(D0) == 0
    flights.check()


def test_a_replay_moves_the_counts():
    flights = Flights(max_in_flight=10)
    flight = flights.admit(RequestId("r"))
    flights.depart(flight, ROUTE, WORK)
    flights.depart(flight, Route(prefill=C0, decode=C0), WORK)
    assert (flights.sequences_at(P0), flights.sequences_at(D0), flights.sequences_at(C0)) == (
        0,
        0,
        1,
    )
    flights.check()


@pytest.mark.parametrize(
    ("phase", "lost_with"), [("new", {P0, D0}), ("prefilled", {P0, D0}), ("arrived", {D0})]
)
def test_a_lost_instance_is_told_to_the_flights_that_still_need_it(phase, lost_with):
    for instance in (P0, D0, C0):
        flights = Flights(max_in_flight=10)
        flight = flights.admit(RequestId("r"))
        flights.depart(flight, ROUTE, WORK)
        if phase != "new":
            flights.prefilled(flight)
        if phase == "arrived":
            flights.arrived(flight)
        reasons: list[str] = []
        flight.on_lost = reasons.append
        flights.lose(instance, "gone")
        assert reasons == (["gone"] if instance in lost_with else [])


def test_when_idle():
    async def scenario():
        flights = Flights(max_in_flight=10)
        await flights.when_idle()
        flight = flights.admit(RequestId("r"))
        flights.depart(flight, ROUTE, WORK)
        await flights.when_idle(C0)
        all_idle = asyncio.create_task(flights.when_idle())
        p0_idle = asyncio.create_task(flights.when_idle(P0))
        given_up = asyncio.create_task(flights.when_idle(D0))
        await asyncio.sleep(0)
        given_up.cancel()
        flights.prefilled(flight)
        await p0_idle
        assert not all_idle.done()
        flights.land(flight)
        await all_idle

    in_loop(scenario())


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("adpAl"), st.integers(0, 4)), max_size=60))
def test_the_sums_always_agree(steps):
    flights, open_flights = Flights(max_in_flight=4), {}
    for step, number in steps:
        flight = open_flights.get(number)
        if step == "a" and flight is None and len(flights) < 4:
            open_flights[number] = flights.admit(RequestId(str(number)))
        elif step == "d" and flight:
            flights.depart(flight, ROUTE if number % 2 else Route(prefill=C0, decode=C0), WORK)
        elif step == "p" and flight:
            flights.prefilled(flight)
        elif step == "A" and flight:
            flights.arrived(flight)
        elif step == "l" and flight:
            flights.land(open_flights.pop(number))
        flights.check()
    for flight in open_flights.values():
        flights.land(flight)
    flights.check()
    assert flights.queued_at(P0) == PrefillWork() and flights.sequences_at(C0) == 0
