"""Load: what we gave counts at once, what others did counts when two heartbeats say so."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from memserve_jax.core.cost_model import CostModel, PrefillWork
from memserve_jax.core.types import InstanceId, RequestId, Role, Route
from scheduler.flights import Flights
from scheduler.load_table import CostTable, LoadTable
from scheduler.roster import Place, make_roster
from scheduler.view import to_columns
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


def place(name: str, *, rate: float = 0.0, tp: int = 1) -> Place:
    return Place(
        instance=InstanceId(name),
        role=Role.COLOCATED,
        tensor_parallelism=tp,
        prefill_tokens_per_s=rate,
    )


def test_alike_instances_cost_alike_whatever_they_measured():
    roster = make_roster(
        [
            place("c0", rate=20_000.0),
            place("c1", rate=13_000.0),
            place("c2"),
            place("c3", tp=2, rate=50_000.0),
            place("c4", tp=4),
        ]
    )
    rates = np.array([place.prefill_tokens_per_s for place in roster.places])
    table = CostTable(COST)
    found = {
        roster.instance(row): cost for cost, rows in table.costs(roster, rates) for row in rows
    }
    assert found[C0] == found[InstanceId("c1")] == found[InstanceId("c2")]
    assert found[C0].s_per_token == pytest.approx(1 / 20_000)
    assert found[InstanceId("c3")].s_per_token == pytest.approx(1 / 50_000)
    assert found[InstanceId("c4")] == COST
    again = table.costs(roster, rates)
    assert all(cost is found[roster.instance(rows[0])] for cost, rows in again)


def test_columns_hold_what_the_table_says():
    flights = Flights(max_in_flight=10)
    loads = LoadTable(flights)
    roster = make_roster([place("c1"), place("c0", rate=5.0)])
    assert loads.columns(roster).prefill_tokens_per_s.tolist() == [5.0, 0.0]
    flight = depart(flights, "a", 100)
    depart(flights, "b", 50)
    for _ in range(2):
        loads.heard(make_status("c1", running=3, prefill_tokens_per_s=7.0))
    columns = loads.columns(roster)
    assert columns.queued.new_tokens.tolist() == [150, 0]
    assert columns.queued.token_pairs.tolist() == [100 * 101 // 2 + 50 * 51 // 2, 0]
    assert (columns.sequences.tolist(), columns.queued.prompts.tolist()) == ([2, 3], [2, 0])
    assert columns.prefill_tokens_per_s.tolist() == [5.0, 7.0]
    flights.prefilled(flight)
    assert loads.columns(roster).queued.new_tokens.tolist() == [50, 0]
    flights.land(flight)
    assert loads.columns(roster).sequences.tolist() == [1, 3]
    other = loads.columns(make_roster([place("c1"), place("c2")]))
    assert other.sequences.tolist() == [3, 0]


moves = st.lists(
    st.tuples(
        st.sampled_from(["depart", "prefilled", "land", "heard", "leave"]), st.integers(0, 5)
    ),
    max_size=40,
)


@given(moves)
def test_columns_follow_whatever_happens(steps):
    flights = Flights(max_in_flight=100)
    loads = LoadTable(flights)
    names = [InstanceId(f"c{i}") for i in range(6)]
    roster, under_way = make_roster(place(name) for name in names), []
    for number, (what, which) in enumerate(steps):
        name = names[which]
        if what == "depart":
            flight = flights.admit(RequestId(str(number)))
            route = Route(prefill=name, decode=names[-1])
            flights.depart(flight, route, PrefillWork.of(100 + number, 16))
            under_way.append(flight)
        elif what == "heard":
            loads.heard(make_status(name, queued_prefill_tokens=50 * number, running=which))
        elif what == "leave":
            loads.left(name)
            roster = make_roster(place(each) for each in names if each != name)
        elif under_way:
            flight = under_way[which % len(under_way)]
            if what == "land":
                under_way.remove(flight)
            getattr(flights, what)(flight)
        columns = loads.columns(roster)
        expected = to_columns([loads.queued_at(each.instance) for each in roster.places])
        assert all((a == b).all() for a, b in zip(columns.queued, expected, strict=True))
        assert columns.sequences.tolist() == [loads.sequences_at(p.instance) for p in roster.places]
