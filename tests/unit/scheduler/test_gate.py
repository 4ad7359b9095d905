"""The gate: fair turns, bounds, refusals in time, and books that balance whatever happens."""

import asyncio

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import parse_config
from memserve_jax.core.cost_model import PrefillWork
from memserve_jax.core.errors import OverloadedError
from memserve_jax.core.types import InstanceId, Request, RequestId, Route, SamplingParams
from scheduler.flights import Flights
from scheduler.gate import Gate, Stage, await_turn, tenant_of
from scheduler.rooms import Rooms
from tests.helpers.scheduling import in_loop

WORK = PrefillWork.of(3, 0)
HERE = Route(prefill=InstanceId("c0"), decode=InstanceId("c0"))


class FixedRooms(Rooms):
    """One instance that takes `size` requests, each `service_s` long."""

    num_prefillers = 1

    def __init__(self, flights, size=1, service_s=0.1):
        self.flights, self.size, self.service_s = flights, size, service_s
        self.learnt = []

    def predicted_s(self, instance):
        return self.service_s

    def learn(self, predicted_s, actual_s):
        self.learnt.append((predicted_s, actual_s))

    def has_room(self, num_called):
        return self.flights.sequences_at(HERE.prefill) + num_called < self.size

    def full(self):
        return frozenset() if self.has_room(0) else frozenset({HERE.prefill})

    def expected_s(self, request, *, looks_up):
        busy_s = self.flights.sequences_at(HERE.prefill) * self.service_s
        return busy_s + self.service_s, busy_s


class Bench:
    """A gate, and what became of those who came."""

    def __init__(self, size=1, **section):
        config = parse_config({"scheduler": section})
        self.clock = ManualClock()
        self.flights = Flights(max_in_flight=1000)
        self.rooms = FixedRooms(self.flights, size)
        self.gate = Gate(config.scheduler, self.rooms, self.clock)
        self.flights.on_change = self.gate.call
        self.tickets, self.turns, self.refused = {}, [], {}

    def come(self, name, *, tenant="", priority=0, time_left_s=None):
        request = Request(
            request_id=RequestId(name),
            session_id="",
            prompt_token_ids=(1, 2, 3),
            sampling=SamplingParams(max_tokens=5),
            cache_salt=tenant,
            priority=priority,
        )
        flight = self.flights.admit(request.request_id)

        def on_turn(error):
            if error is None:
                self.turns.append(name)
            else:
                self.refused[name] = error

        try:
            self.tickets[name] = self.gate.enter(request, flight, on_turn, time_left_s=time_left_s)
        except OverloadedError:
            self.flights.land(flight)
            raise
        return self.tickets[name]

    def go(self, name):
        ticket = self.tickets[name]
        self.flights.depart(ticket.flight, HERE, WORK)

    def end(self, name):
        ticket = self.tickets.pop(name)
        self.gate.leave(ticket, num_output=2)
        self.flights.land(ticket.flight)

    def check(self):
        self.gate.check()
        self.flights.check()


def test_who_finds_room_goes_at_once_and_others_in_turn():
    bench = Bench()
    assert bench.come("a").stage is Stage.CALLED
    assert bench.come("b").stage is Stage.WAITING  # a is called, and has not been sent
    bench.go("a")
    assert bench.turns == ["a"]
    bench.end("a")
    assert bench.turns == ["a", "b"]
    bench.end("b")
    bench.check()
    assert bench.gate.num_waiting == 0


def test_what_was_predicted_is_compared_with_the_first_token():
    bench = Bench()
    bench.come("a")
    bench.go("a")
    bench.clock.advance(0.3)
    for _ in range(2):
        bench.flights.prefilled(bench.tickets["a"].flight)
    assert bench.rooms.learnt == [(0.1, pytest.approx(0.3))]
    bench.end("a")
    bench.come("b")
    bench.go("b")
    bench.end("b")  # without a token: nothing to learn
    assert len(bench.rooms.learnt) == 1


def test_priorities_and_tenants_decide_whose_turn_it_is():
    bench = Bench()
    bench.come("first", tenant="a")
    bench.go("first")
    for name, tenant, priority in (("a1", "a", 0), ("a2", "a", 0), ("b1", "b", 0), ("p", "a", -1)):
        bench.come(name, tenant=tenant, priority=priority)
    for name in ("first", "p", "b1", "a1", "a2"):
        assert bench.turns[-1] == name
        if name != "first":
            bench.go(name)
        bench.end(name)
    bench.check()


def test_who_gives_up_frees_the_place_at_once():
    bench = Bench(queue={"max_waiting": 1})
    bench.come("a")
    bench.come("b")
    with pytest.raises(OverloadedError, match="1 requests wait, allowed: 1") as caught:
        bench.come("c")
    assert caught.value.reason == "waiting"
    bench.end("b")
    bench.come("c")
    bench.end("a")
    assert bench.turns == ["a", "c"]
    bench.end("c")
    bench.check()


def test_who_would_be_late_is_refused_and_who_has_become_late_too():
    bench = Bench(slo={"ttft_s": 0.25})
    bench.come("a")
    bench.go("a")
    bench.come("b")  # after 0.1 s, and 0.1 s more
    with pytest.raises(OverloadedError) as caught:
        bench.come("c")
    assert caught.value.reason == "slo"
    assert caught.value.retry_after_s > 0
    bench.clock.advance(0.2)  # a is slower than was thought
    bench.gate.expire()
    assert bench.refused["b"].reason == "slo"
    bench.end("b")
    bench.end("a")
    assert bench.turns == ["a"]
    bench.check()


def test_a_stall_foretells_the_rest_only_once_turns_make_a_pace():
    bench = Bench()
    for name in "abcdefghijkl":
        bench.come(name)
    for name in "abc":  # two turns of those who wait, 100 s apart
        bench.go(name)
        bench.clock.advance(100.0)
        bench.end(name)
    assert bench.come("x", time_left_s=60.0).stage is Stage.WAITING  # eight ahead, 1 s each
    bench.end("x")
    for name in "defghi":
        bench.go(name)
        bench.clock.advance(100.0)
        bench.end(name)
    with pytest.raises(OverloadedError, match="deadline"):
        bench.come("y", time_left_s=60.0)
    bench.check()


def test_deadlines_count_where_they_should():
    for honours, refused in ((True, True), (False, False)):
        bench = Bench(slo={"deadlines": honours})
        bench.come("a")
        bench.go("a")
        bench.come("patient", time_left_s=10.0)
        if refused:
            with pytest.raises(OverloadedError, match="deadline leaves"):
                bench.come("hasty", time_left_s=0.05)
        else:
            bench.come("hasty", time_left_s=0.05)
        bench.check()


def test_a_route_without_a_place_is_refused_while_others_wait():
    bench = Bench()
    bench.gate.refuse_if_busy()
    bench.come("a")
    bench.come("b")
    with pytest.raises(OverloadedError, match="1 requests wait"):
        bench.gate.refuse_if_busy()


def test_full_instances_are_avoided_unless_all_are():
    bench = Bench(size=2)
    assert bench.gate.full() == frozenset()
    bench.come("a")
    bench.go("a")
    bench.come("b")
    bench.go("b")
    assert bench.gate.full() == frozenset()


def test_a_tenant_is_what_the_config_says():
    request = Request(
        request_id=RequestId("r"),
        session_id="s",
        prompt_token_ids=(1,),
        sampling=SamplingParams(),
        cache_salt="c",
    )
    ways = ("key", "cache_salt", "session_id", "none")
    assert [tenant_of(request, by, label="") for by in ways] == ["c", "c", "s", ""]
    assert [tenant_of(request, by, label="alice") for by in ways] == ["alice", "c", "s", ""]


def test_waiting_in_the_loop_ends_by_a_turn_a_refusal_or_a_cancellation():
    async def scenario():
        bench = Bench(slo={"ttft_s": 0.25})

        async def wait(name):
            flight = bench.flights.admit(RequestId(name))
            request = Request(
                request_id=RequestId(name),
                session_id="",
                prompt_token_ids=(1,),
                sampling=SamplingParams(),
            )
            ticket = await await_turn(bench.gate, request, flight, time_left_s=None)
            bench.flights.depart(flight, HERE, WORK)
            return ticket, flight

        ticket, flight = await wait("a")
        late = asyncio.create_task(wait("late"))
        await asyncio.sleep(0)
        assert bench.gate.num_waiting == 1
        bench.clock.advance(1.0)
        bench.gate.expire()
        with pytest.raises(OverloadedError):
            await late
        gone = asyncio.create_task(wait("gone"))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert bench.gate.num_waiting == 0
        bench.gate.leave(ticket)
        bench.flights.land(flight)
        bench.gate.check()

    in_loop(scenario())


class Machine(RuleBasedStateMachine):
    """Everything that can happen to requests, in any order."""

    def __init__(self):
        super().__init__()
        self.bench = Bench(size=2, queue={"max_waiting": 4, "patience_s": 3.0}, slo={"ttft_s": 2.0})
        self.count = 0

    @rule(
        tenant=st.sampled_from("ab"),
        priority=st.integers(-1, 1),
        left_s=st.none() | st.floats(0, 3),
    )
    def come(self, tenant, priority, left_s):
        self.count += 1
        try:
            self.bench.come(f"r{self.count}", tenant=tenant, priority=priority, time_left_s=left_s)
        except OverloadedError as error:
            assert error.retry_after_s is not None and error.retry_after_s > 0

    @precondition(lambda self: self.bench.tickets)
    @rule(data=st.data(), ends=st.booleans())
    def move(self, data, ends):
        name = data.draw(st.sampled_from(sorted(self.bench.tickets)))
        ticket = self.bench.tickets[name]
        if ends or name in self.bench.refused:
            self.bench.end(name)
        elif ticket.stage is Stage.CALLED:
            self.bench.go(name)

    @rule(seconds=st.floats(0, 1))
    def time_passes(self, seconds):
        self.bench.clock.advance(seconds)
        self.bench.gate.expire()

    @invariant()
    def books_balance(self):
        bench = self.bench
        bench.check()
        stages = [ticket.stage for ticket in bench.tickets.values()]
        assert bench.gate.num_waiting == stages.count(Stage.WAITING) <= 4
        num_given = bench.flights.sequences_at(HERE.prefill) + stages.count(Stage.CALLED)
        assert num_given <= 2
        if bench.gate.num_waiting:
            assert num_given == 2, "someone waits though there is room"

    def teardown(self):
        for name in sorted(self.bench.tickets):
            self.bench.end(name)
        self.bench.check()
        assert self.bench.gate.num_waiting == 0 and len(self.bench.flights) == 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
