"""What the scheduler learns from answers, in every caching mode, and routes by."""

import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.cost_model import CostModel
from memserve_jax.core.errors import NoInstanceError
from memserve_jax.core.types import InstanceId, Request, RequestId, Role, SamplingParams, Tier
from scheduler.policies import POLICIES
from scheduler.router import Router
from scheduler.state import HOPE_HEARTBEATS, make_state
from tests.helpers.fake_instance import make_status

S = 16


class World:
    """A router with its parts and no sockets."""

    def __init__(self, *statuses, policy="min_ttft", **section):
        self.clock = ManualClock(1.0)
        section = SchedulerSection(prompt_tree_ttl_s=60.0, **section)
        self.state = make_state(section, self.clock, model="tiny")
        self.trees, self.cluster = self.state.trees, self.state.cluster
        self.router = Router(
            self.state,
            policy=POLICIES[policy],
            cost=CostModel(fixed_s=1e-3, s_per_token=1e-4, s_per_token_pair=0.0),
        )
        for status in statuses:
            self.cluster.register(status)

    def blocks(self, role: Role, token_ids) -> dict[str, int]:
        names = self.router.plan(make_request(token_ids)).names
        return dict(self.trees[role].match(names, self.clock.now_s()))


def make_request(token_ids, *, salt="") -> Request:
    return Request(
        request_id=RequestId("r"),
        session_id="",
        prompt_token_ids=tuple(token_ids),
        sampling=SamplingParams(),
        cache_salt=salt,
    )


def one_p_one_d(caching: str) -> World:
    return World(
        make_status("p0", role="prefill", caching=caching),
        make_status("d0", role="decode", caching=caching),
    )


PROMPT, OUTPUT = list(range(40)), list(range(100, 125))  # 2 whole blocks; 4 with the history


@pytest.mark.parametrize(
    ("caching", "first", "second", "end"),
    [  # blocks at P, at D: after the first token, the second, and the end
        ("pd_basic", ({}, {}), ({}, {}), ({}, {})),
        ("pd_caching_1", ({"p0": 2}, {}), ({"p0": 2}, {}), ({"p0": 2}, {})),
        ("pd_caching_2", ({"p0": 2}, {}), ({"p0": 2}, {"d0": 2}), ({"p0": 2}, {"d0": 4})),
        ("pd_caching_3", ({"p0": 2}, {}), ({"p0": 2}, {"d0": 2}), ({"p0": 4}, {"d0": 4})),
    ],
)
def test_what_a_pair_learns(caching, first, second, end):
    world = one_p_one_d(caching)
    plan = world.router.plan(make_request(PROMPT))
    asked = PROMPT + OUTPUT

    def known():
        return world.blocks(Role.PREFILL, asked), world.blocks(Role.DECODE, asked)

    world.router.prefilled(plan)
    assert known() == first
    world.router.arrived(plan)
    assert known() == second
    world.router.finished(plan, OUTPUT)
    assert known() == end  # 40 + 24 tokens have KV: the last one has none
    world.trees.check()


@pytest.mark.parametrize(("caching", "blocks"), [("on", {"c0": 4}), ("off", {})])
def test_what_a_colocated_instance_learns(caching, blocks):
    world = World(make_status("c0", caching=caching))
    plan = world.router.plan(make_request(PROMPT))
    world.router.prefilled(plan)
    world.router.arrived(plan)
    world.router.finished(plan, OUTPUT)
    assert world.blocks(Role.COLOCATED, PROMPT + OUTPUT) == blocks


def test_an_answer_of_one_token_never_reached_the_decode_instance():
    world = one_p_one_d("pd_caching_3")
    plan = world.router.plan(make_request(PROMPT))
    world.router.prefilled(plan)
    world.router.finished(plan, [7])
    assert world.blocks(Role.DECODE, PROMPT) == {}
    assert world.blocks(Role.PREFILL, PROMPT) == {"p0": 2}


def test_the_next_turn_counts_on_the_history_and_the_cap():
    world = World(make_status("c0"), make_status("c1"))
    plan = world.router.plan(make_request(PROMPT))
    world.router.finished(plan, OUTPUT)
    follow = world.router.plan(make_request(PROMPT + OUTPUT + [1]))
    assert (follow.route.prefill, follow.route.cached_tokens) == (plan.route.prefill, 4 * S)
    same = world.router.plan(make_request((PROMPT + OUTPUT)[: 4 * S]))
    assert same.route.cached_tokens == 3 * S  # a full hit computes its last token
    assert world.router.num_routed == 3


def test_the_salt_keeps_tenants_apart():
    world = World(make_status("c0"))
    plan = world.router.plan(make_request(PROMPT, salt="red"))
    world.router.finished(plan, OUTPUT)
    assert world.router.plan(make_request(PROMPT, salt="blue")).route.cached_tokens == 0
    assert world.router.plan(make_request(PROMPT, salt="red")).route.cached_tokens == 2 * S


def test_nothing_is_learnt_of_a_life_that_is_over():
    world = World(make_status("c0", epoch=1))
    plan = world.router.plan(make_request(PROMPT))
    world.router.prefilled(plan)
    world.cluster.register(make_status("c0", epoch=2))
    assert world.trees.blocks_of(InstanceId("c0")) == 0
    world.router.finished(plan, OUTPUT)
    assert world.trees.blocks_of(InstanceId("c0")) == 0


def test_what_a_route_counts_on_makes_room_last():
    world = World(make_status("c0"), prompt_tree_blocks=6)
    tree, c0 = world.trees[Role.COLOCATED], InstanceId("c0")
    names = world.router.plan(make_request(PROMPT)).names.first(2)
    tree.begin_snapshot(c0)
    for told in (names, [b"older"], [b"younger"]):
        tree.store(c0, Tier.HBM, told)
    tree.end_snapshot(c0)
    assert world.router.plan(make_request([*PROMPT, 1])).route.cached_tokens == 2 * S
    tree.store(c0, Tier.HBM, [b"1", b"2", b"3"])  # one too many
    assert tree.match([b"older"], 1.0) == {} and tree.match([b"younger"], 1.0) == {"c0": 1}
    assert tree.match(names, 1.0) == {"c0": 2}


def test_answers_of_who_tells_count_for_some_heartbeats_only():
    world = World(make_status("c0"), heartbeat_s=0.5)
    tree, c0 = world.trees[Role.COLOCATED], InstanceId("c0")
    tree.begin_snapshot(c0)
    tree.end_snapshot(c0)
    world.router.prefilled(world.router.plan(make_request(PROMPT)))
    assert world.blocks(Role.COLOCATED, PROMPT) == {"c0": 2}
    world.clock.advance(0.5 * HOPE_HEARTBEATS)  # it never came to be, or is gone again
    assert world.blocks(Role.COLOCATED, PROMPT) == {}


def test_knowledge_ages():
    world = World(make_status("c0"))
    world.router.finished(world.router.plan(make_request(PROMPT)), OUTPUT)
    for _ in range(20):
        world.clock.advance(4.0)
        world.cluster.heartbeat(make_status("c0"))
    assert world.router.plan(make_request(PROMPT)).route.cached_tokens == 0


def test_only_live_serving_instances_get_requests():
    world = World(policy="round_robin")
    with pytest.raises(NoInstanceError, match="no instance is registered"):
        world.router.plan(make_request(PROMPT))
    for name in ("c0", "c1", "c2"):
        world.cluster.register(make_status(name))
    world.cluster.member("c0").is_draining = True
    world.cluster.member("c1").is_suspect = True
    for _ in range(4):
        assert world.router.plan(make_request(PROMPT)).route.prefill == "c2"
    world.clock.advance(6.0)
    world.cluster.expire()
    with pytest.raises(NoInstanceError):
        world.router.plan(make_request(PROMPT))


def test_a_plan_carries_what_the_wire_needs():
    world = World(
        make_status("p0", role="prefill", target="h:1"),
        make_status("d0", role="decode", target="h:2"),
    )
    plan = world.router.plan(make_request([5]))
    message = plan.to_message()
    assert (message.prefill_instance, message.prefill_target) == ("p0", "h:1")
    assert (message.decode_instance, message.decode_target) == ("d0", "h:2")
    assert message.reason == "ttft" and plan.work.new_tokens == 1 and not plan.names


def test_a_route_names_the_peer_that_holds_more():
    world = World(
        make_status("p0", role="prefill", caching="pd_caching_2"),
        make_status("d0", role="decode", caching="pd_caching_2"),
    )
    plan = world.router.plan(make_request(PROMPT))
    assert plan.to_message().fetch_instance == ""
    world.router.prefilled(plan)
    world.router.arrived(plan)
    world.router.finished(plan, OUTPUT)
    again = world.router.plan(make_request(PROMPT + OUTPUT)).to_message()
    assert (again.prefill_instance, again.cached_tokens) == ("p0", 32)
    assert (again.fetch_instance, again.fetch_tokens) == ("d0", 64)
    assert again.fetch_target == world.cluster.member(InstanceId("d0")).traits.target
