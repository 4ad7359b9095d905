"""Who has room, by what was given, and what a request would wait for there."""

import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import parse_config
from memserve_jax.core.cost_model import PrefillWork
from memserve_jax.core.types import InstanceId, Request, RequestId, Route, SamplingParams
from scheduler.rooms import Rooms
from scheduler.state import make_state
from tests.helpers.fake_instance import make_status

COST = {"fixed_s": 0.0, "s_per_token": 0.01}


def make_rooms(*roles, **section):
    config = parse_config({"scheduler": {"cost": COST, **section}})
    clock = ManualClock()
    state = make_state(config.scheduler, clock, model="tiny")
    for number, role in enumerate(roles):
        state.cluster.register(make_status(f"{role[0]}{number}", role=role))
    rooms = Rooms(state.cluster, state.loads, state.trees, config.scheduler, clock)
    return state, rooms


def give(state, name, prefill, decode, num_tokens):
    flight = state.flights.admit(RequestId(name))
    route = Route(prefill=InstanceId(prefill), decode=InstanceId(decode))
    state.flights.depart(flight, route, PrefillWork.of(num_tokens, 0))
    return flight


def request_of(num_tokens):
    return Request(
        request_id=RequestId("r"),
        session_id="",
        prompt_token_ids=tuple(range(num_tokens)),
        sampling=SamplingParams(),
    )


def test_an_instance_has_its_fill_of_prefill_or_of_sequences():
    state, rooms = make_rooms("colocated", "colocated", queue={"instance_sequences": 2})
    assert rooms.has_room(1) and not rooms.has_room(2)
    assert rooms.num_prefillers == 2
    long = give(state, "long", "c0", "c0", 250)  # 2.5 s
    assert rooms.full() == {"c0"}
    assert rooms.has_room(0) and not rooms.has_room(1)
    give(state, "a", "c1", "c1", 1)
    give(state, "b", "c1", "c1", 1)
    assert rooms.full() == {"c0", "c1"}
    assert not rooms.has_room(0)
    state.flights.prefilled(long)
    assert rooms.has_room(0)


def test_a_prefill_instance_needs_a_decode_one_beside_it():
    state, rooms = make_rooms("prefill", "decode", queue={"instance_sequences": 1})
    assert rooms.has_room(0)
    assert rooms.num_prefillers == 1
    flight = give(state, "a", "p0", "d1", 10)
    state.flights.prefilled(flight)
    assert rooms.full() == {"d1"}
    assert not rooms.has_room(0)


def test_where_nothing_serves_nobody_waits():
    _, rooms = make_rooms("prefill")
    assert rooms.has_room(5)
    assert rooms.expected_s(request_of(10), looks_up=False) == (0.0, 0.0)
    _, nobody = make_rooms()
    assert nobody.expected_s(request_of(10), looks_up=False) == (0.0, 0.0)


def test_the_best_instance_is_expected_to_serve_with_what_it_holds():
    state, rooms = make_rooms("colocated", "colocated")
    request = request_of(33)
    give(state, "a", "c0", "c0", 100)
    assert rooms.expected_s(request, looks_up=False) == (pytest.approx(0.33), 0.0)
    give(state, "b", "c1", "c1", 50)
    assert rooms.expected_s(request, looks_up=False) == (pytest.approx(0.83), 0.5)


def test_a_cost_that_is_off_is_stretched_to_what_prefills_take():
    state, rooms = make_rooms("colocated")
    give(state, "a", "c0", "c0", 150)
    assert rooms.predicted_s(InstanceId("c0")) == pytest.approx(1.5)
    assert rooms.predicted_s(InstanceId("gone")) == 0.0
    assert rooms.has_room(0)
    for _ in range(50):
        rooms.learn(1.0, 2.0)
    assert not rooms.has_room(0)  # it is 3 s
    _, busy_s = rooms.expected_s(request_of(10), looks_up=False)
    assert busy_s == pytest.approx(3.0, rel=0.02)
    rooms.learn(0.0, 5.0)
    for _ in range(100):
        rooms.learn(1.0, 1e-6)
    assert rooms.expected_s(request_of(10), looks_up=False)[1] == pytest.approx(0.15, rel=0.02)


def test_a_promise_leaves_half_of_its_time_to_an_instances_queue():
    state, rooms = make_rooms("colocated", slo={"ttft_s": 1.0})
    give(state, "a", "c0", "c0", 40)
    assert rooms.has_room(0)
    give(state, "b", "c0", "c0", 20)
    assert not rooms.has_room(0)
