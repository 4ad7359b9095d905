"""Load: what we gave counts at once, what others did counts when two heartbeats say so."""

import pytest

from memserve_jax.core.cost_model import CostModel, PrefillWork
from memserve_jax.core.types import InstanceId, RequestId, Route
from scheduler.cluster import Member, traits_of
from scheduler.flights import Flights
from scheduler.load_table import LoadTable, costs
from tests.helpers.fake_instance import make_status

C0 = InstanceId("c0")
COST = CostModel(fixed_s=1e-3, s_per_token=1e-4, s_per_token_pair=0.0)


def depart(flights: Flights, name: str, num_tokens: int):
    flight = flights.admit(RequestId(name))
    flights.depart(flight, Route(prefill=C0, decode=C0), PrefillWork.of(num_tokens, 0))
    return flight


def test_our_own_requests_count_between_heartbeats():
    flights = Flights(max_in_flight=10)
    loads = LoadTable(flights)
    flight = depart(flights, "a", 100)
    depart(flights, "b", 50)
    assert (loads.queued_at(C0).new_tokens, loads.sequences_at(C0)) == (150, 2)
    flights.prefilled(flight)
    assert (loads.queued_at(C0).new_tokens, loads.sequences_at(C0)) == (50, 2)
    flights.land(flight)
    assert (loads.queued_at(C0).new_tokens, loads.sequences_at(C0)) == (50, 1)


def test_a_heartbeat_does_not_count_our_requests_twice():
    flights = Flights(max_in_flight=10)
    loads = LoadTable(flights)
    depart(flights, "a", 100)
    for _ in range(2):
        loads.heard(make_status(queued_prefill_tokens=80, running=1))
    assert (loads.queued_at(C0).new_tokens, loads.sequences_at(C0)) == (100, 1)


def test_the_work_of_others_counts_once_it_lasts():
    flights = Flights(max_in_flight=10)
    loads = LoadTable(flights)
    depart(flights, "a", 100)
    busy = make_status(queued_prefill_tokens=400, running=2, waiting=3)
    loads.heard(busy)
    assert (loads.queued_at(C0).new_tokens, loads.sequences_at(C0)) == (100, 1)
    loads.heard(busy)
    assert (loads.queued_at(C0).new_tokens, loads.sequences_at(C0)) == (400, 5)
    loads.heard(make_status())
    assert (loads.queued_at(C0).new_tokens, loads.sequences_at(C0)) == (100, 1)
    loads.heard(busy)
    loads.heard(busy)
    loads.left(C0)
    assert loads.queued_at(C0).new_tokens == 100


def member(name: str, **fields) -> Member:
    status = make_status(name, **fields)
    return Member(traits=traits_of(status), status=status, heard_s=0.0)


def test_alike_instances_cost_alike_whatever_they_measured():
    members = [
        member("c0", prefill_tokens_per_s=20_000.0),
        member("c1", prefill_tokens_per_s=13_000.0),
        member("c2"),
        member("c3", tensor_parallelism=2, prefill_tokens_per_s=50_000.0),
        member("c4", tensor_parallelism=4),
    ]
    found = costs(members, COST)
    assert found[InstanceId("c0")] == found[InstanceId("c1")] == found[InstanceId("c2")]
    assert found[C0].s_per_token == pytest.approx(1 / 20_000)
    assert found[InstanceId("c3")].s_per_token == pytest.approx(1 / 50_000)
    assert found[InstanceId("c4")] == COST
