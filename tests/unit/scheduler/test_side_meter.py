"""What the planner goes by: waits and usage over a window."""

import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import parse_config
from memserve_jax.core.cost_model import PrefillWork
from memserve_jax.core.types import InstanceId, Request, RequestId, Role, Route, SamplingParams
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.side_meter import SideMeter
from scheduler.state import make_state
from tests.helpers.fake_instance import make_status

P0, D0 = InstanceId("p0"), InstanceId("d0")
ROUTE = Route(prefill=P0, decode=D0)
WINDOW_S = 4.0
ROLES = {"p": "prefill", "d": "decode", "c": "colocated"}


class Bench:
    """A scheduler's state, looked at every second."""

    def __init__(self, *names: str, **section: object):
        config = parse_config(
            {"scheduler": {"cost": {"fixed_s": 0.0, "s_per_token": 0.01}, **section}}
        )
        self.clock = ManualClock()
        self.state = make_state(config.scheduler, self.clock, model="tiny")
        self.meter = SideMeter(self.state, window_s=WINDOW_S, most_sequences=64)
        self.statuses = {name: make_status(name, role=ROLES[name[0]]) for name in names}
        for status in self.statuses.values():
            self.state.cluster.register(status)
        self.clock.advance(config.scheduler.heartbeat_timeout_s)
        self.beat()

    def beat(self, **busy_s: float) -> None:
        """Hears everybody; prefill instances have been busy for so much longer."""
        for name, status in self.statuses.items():
            copy = pb.InstanceStatus()
            copy.CopyFrom(status)
            copy.counters.prefill_actual_s += busy_s.get(name, 0.0)
            self.statuses[name] = copy
            self.state.cluster.heartbeat(copy)

    def look(self, *, is_changing: bool = False):
        return self.meter.look(is_changing=is_changing)

    def depart(self, name: str, num_tokens: int = 100):
        flight = self.state.flights.admit(RequestId(name))
        self.state.flights.depart(flight, ROUTE, PrefillWork.of(num_tokens, 0))
        return flight


def test_prefill_waits_as_long_as_the_least_busy_instance_has_work():
    bench = Bench("p0", "p1", "d0")
    assert bench.look().sides[Role.PREFILL].wait_s == 0.0
    bench.depart("r", 300)
    bench.clock.advance(1.0)
    assert bench.look().sides[Role.PREFILL].wait_s == 0.0  # p1 is free
    lonely = Bench("p0", "d0")
    lonely.depart("r", 300)
    assert lonely.look().sides[Role.PREFILL].wait_s == pytest.approx(3.0)
    lonely.state.flights.prefilled(lonely.depart("s", 100))
    lonely.clock.advance(1.0)
    assert lonely.look().sides[Role.PREFILL].wait_s == pytest.approx(3.0)


def test_decode_waits_from_the_first_token_to_the_second():
    bench = Bench("p0", "d0")
    bench.look()
    waiting = [bench.depart(f"r{number}") for number in range(8)]
    for flight in waiting:
        bench.state.flights.prefilled(flight)
    for flight in waiting[:4]:  # one gets through every half second; there are 8, 6, 4 ...
        for _ in range(2):
            bench.clock.advance(0.5)
            bench.look()
        bench.state.flights.arrived(flight)
    bench.clock.advance(1.0)
    bench.beat()
    found = bench.look().sides[Role.DECODE].wait_s
    assert 4.0 < found < 10.0  # some six wait, and one a second goes
    bench.state.check()


def test_where_nobody_gets_through_the_wait_grows_with_the_window():
    bench = Bench("p0", "d0")
    bench.look()
    bench.state.flights.prefilled(bench.depart("r"))
    waits = []
    for _ in range(8):
        bench.clock.advance(1.0)
        waits.append(bench.look().sides[Role.DECODE].wait_s)
    assert waits == sorted(waits) and waits[-1] == pytest.approx(WINDOW_S)


def test_usage_of_prefill_is_time_and_of_decode_what_is_full():
    bench = Bench("p0", "p1", "d0", "d1", "c0")
    bench.look()
    hbm = [pb.TierStatus(tier="hbm", num_blocks=100, leased_blocks=10, free_blocks=90)]
    bench.statuses["d0"].MergeFrom(pb.InstanceStatus(running=2, max_running=8, tiers=hbm))
    bench.statuses["d1"].MergeFrom(pb.InstanceStatus(running=32))  # of 64, as the config says
    for _ in range(8):
        bench.clock.advance(1.0)
        bench.beat(p0=0.75)
        look = bench.look()
    assert [each.instance for each in look.sides[Role.DECODE].candidates] == ["d0", "d1"]
    prefill, decode = ([*look.sides[role].candidates] for role in (Role.PREFILL, Role.DECODE))
    assert [each.usage for each in prefill] == pytest.approx([0.75, 0.0])
    assert [each.usage for each in decode] == pytest.approx([0.25, 0.5])
    bench.statuses["d0"].tiers[0].leased_blocks = 90
    for _ in range(8):
        bench.clock.advance(1.0)
        bench.beat()
        look = bench.look()
    assert look.sides[Role.DECODE].candidates[0].usage == pytest.approx(0.9)


def test_who_has_only_just_come_counts_as_busy():
    bench = Bench("p0", "d0")
    bench.look()
    bench.clock.advance(1.0)
    bench.beat(p0=0.1)
    bench.state.cluster.register(make_status("p0", role="prefill", epoch=2))
    (candidate,) = bench.look().sides[Role.PREFILL].candidates
    assert candidate.usage == 1.0


def test_what_is_full_of_sequences_holds_decode_up_and_not_prefill():
    bench = Bench("p0", "d0", queue={"instance_sequences": 1})
    request = bench.depart("r")
    bench.state.flights.prefilled(request)
    turns: list[object] = []
    ticket = bench.state.gate.enter(
        _request("s"), bench.state.flights.admit(RequestId("s")), turns.append, time_left_s=None
    )
    bench.look()
    bench.clock.advance(3.0)
    look = bench.look()
    assert not turns
    assert look.sides[Role.PREFILL].wait_s == 0.0
    assert look.sides[Role.DECODE].wait_s == pytest.approx(1.5 + 3.0)  # the gate's, and r's
    bench.state.gate.leave(ticket)


def test_settled_is_only_a_cluster_that_stands_still():
    bench = Bench("p0", "d0")
    assert bench.look().is_settled
    assert not bench.look(is_changing=True).is_settled
    bench.state.cluster.member("d0").is_draining = True
    assert not bench.look().is_settled
    fresh = ManualClock()
    section = parse_config({}).scheduler
    state = make_state(section, fresh, model="tiny")
    meter = SideMeter(state, window_s=1.0, most_sequences=1)
    assert not meter.look(is_changing=False).is_settled  # others may have yet to report


def _request(name: str):
    return Request(
        request_id=RequestId(name),
        session_id="",
        prompt_token_ids=(1, 2, 3),
        sampling=SamplingParams(),
    )
