"""Explanations: what the policy saw, why the winner won, and that nothing changes by asking."""

import grpc
import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.cost_model import CostModel, PrefillWork
from memserve_jax.core.errors import NoInstanceError
from memserve_jax.core.types import InstanceId, Request, RequestId, Route, SamplingParams
from scheduler.explanation import explain
from scheduler.policies import POLICIES
from scheduler.router import Router
from scheduler.state import make_state
from tests.helpers.fake_instance import make_status
from tests.helpers.scheduling import failure, in_loop, prompt, scheduling

C0, C1 = InstanceId("c0"), InstanceId("c1")


class World:
    """Two colocated instances and one that is down, under some policy."""

    def __init__(self, policy: str):
        self.state = make_state(SchedulerSection(), ManualClock(1.0), model="tiny")
        cost = CostModel(fixed_s=0.0, s_per_token=1e-3, s_per_token_pair=0.0)
        self.router = Router(self.state, policy=POLICIES[policy], cost=cost, min_gain=0.2)
        for name in ("c0", "c1", "c2"):
            self.state.cluster.register(make_status(name))
        self.state.cluster.member("c2").is_suspect = True

    def give(self, instance: InstanceId, name: str, num_tokens: int) -> None:
        """Has `instance` prefill a prompt of so many tokens."""
        flight = self.state.flights.admit(RequestId(name))
        route = Route(prefill=instance, decode=instance)
        self.state.flights.depart(flight, route, PrefillWork.of(num_tokens, 0))

    def hold(self, instance: InstanceId, request: Request) -> None:
        """Has `instance` hold the prompt of `request`."""
        names = self.router.consider(request)[0].names
        role = self.state.cluster.member(instance).traits.role
        self.state.trees[role].confirm(instance, list(names), 1.0)

    def explain(self, request: Request):
        return explain(request, self.state, self.router)


def make_request(session_id: str = "") -> Request:
    return Request(
        request_id=RequestId("r"),
        session_id=session_id,
        prompt_token_ids=tuple(range(100)),
        sampling=SamplingParams(),
    )


def test_the_columns_of_the_view_and_the_winner():
    world = World("min_ttft")
    world.hold(C0, make_request())
    world.give(C0, "other", 30)
    reply = world.explain(make_request())
    assert (reply.policy, reply.prompt_tokens, reply.route.prefill_instance) == (
        "min_ttft",
        100,
        "c0",
    )
    c0, c1, c2 = reply.instances
    assert (c0.cached_tokens, c0.queued_prefill_tokens, c0.sequences, c0.indexed_blocks) == (
        96,
        30,
        1,
        6,
    )
    assert (c0.queued_s, c0.prefill_s) == pytest.approx((0.031, 0.004))
    assert (c1.cached_tokens, c1.prefill_s, c1.can_start) == (0, pytest.approx(0.1), True)
    assert (c2.state, c2.can_start, c2.prefill_s) == ("down", False, 0.0)
    assert reply.why == (
        "c0: first token predicted in 35.0 ms, 31.0 ms of it queued there before, "
        "4 tokens to compute; the next, c1, would take 100.0 ms"
    )


def test_asking_changes_nothing():
    world = World("round_robin")
    told = {world.explain(make_request()).route.prefill_instance for _ in range(5)}
    assert told == {"c0"} and world.router.num_routed == 0
    assert world.router.plan(make_request()).route.prefill == "c0"
    assert world.explain(make_request()).why == "it is the turn of c1, after 1 requests"


def test_who_stays_for_want_of_a_gain_says_so():
    world = World("min_ttft")
    world.hold(C0, make_request())
    world.give(C0, "other", 110)
    assert world.explain(make_request()).why == (
        "c0: first token predicted in 115.0 ms, 111.0 ms of it queued there before, "
        "4 tokens to compute; c1 would take 100.0 ms, too little less to leave 96 cached tokens "
        "(scheduler.policy_min_gain: 0.2)"
    )
    world.give(C0, "third", 20)
    assert world.explain(make_request()).why.startswith("c1: first token predicted in 100.0 ms")


def test_a_crowd_is_named():
    world = World("min_ttft")
    world.hold(C0, make_request())
    for number in range(20):
        world.give(C0, str(number), 1)
    why = world.explain(make_request()).why
    assert why.startswith("c1: first token predicted in 100.0 ms")
    assert "; c0 would take 44.0 ms but has a crowd, 20 sequences" in why


@pytest.mark.parametrize(
    ("policy", "session_id", "said"),
    [
        ("longest_prefix", "", "c1 holds 96 tokens of the prompt, the next, c0, 0"),
        ("least_load", "", "c1 has 0 sequences and 0 tokens to prefill, the next, c0, 1 and 50"),
        ("session", "s", "session 's' belongs to "),
        ("session", "", "the first block belongs to "),
    ],
)
def test_every_policy_says_why(policy, session_id, said):
    world = World(policy)
    world.hold(C1, make_request())
    world.give(C0, "other", 50)
    assert world.explain(make_request(session_id)).why.startswith(said)


@pytest.mark.parametrize("policy", ["min_ttft", "longest_prefix", "least_load"])
def test_ties_are_explained(policy):
    world = World(policy)
    assert world.explain(make_request()).why.endswith(
        " is equal: the hash of the first block decides"
    )
    other = Request(
        request_id=RequestId("o"), session_id="", prompt_token_ids=tuple(range(500, 600)),
        sampling=SamplingParams(),
    )  # fmt: skip
    world.hold(C0, other)
    assert "c0 is equal but for more blocks cached, 6, not 0" in world.explain(make_request()).why


def test_nobody_to_explain_it_with():
    world = World("min_ttft")
    for name in ("c0", "c1"):
        world.state.cluster.member(name).is_draining = True
    with pytest.raises(NoInstanceError):
        world.explain(make_request())


def test_over_the_wire():
    async def scenario():
        async with scheduling() as running:
            code, _ = await failure(running.control.Explain(prompt(1, 2, 3)))
            assert code is grpc.StatusCode.UNAVAILABLE
            running.state.cluster.register(make_status("c0"))
            reply = await running.control.Explain(prompt(1, 2, 3))
            assert (reply.route.prefill_instance, len(reply.instances)) == ("c0", 1)
            code, text = await failure(running.control.Explain(prompt(999)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT and "token_ids[0]" in text

    in_loop(scenario())
