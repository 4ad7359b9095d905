"""Routing: warm beats cold, idle beats busy, equal instances share, and the view decides alone."""

import collections
import dataclasses
import random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given

from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.cost_model import CostModel, PrefillWork
from memserve_jax.core.errors import NoInstanceError
from memserve_jax.core.types import InstanceId, Request, RequestId, Role, SamplingParams
from scheduler.policies import POLICIES, rendezvous
from scheduler.roster import hash_of
from scheduler.view import ClusterView, InstanceLoad, view_of

COST = CostModel(fixed_s=1e-3, s_per_token=1e-4, s_per_token_pair=1e-8)


def make_request(*, session_id: str = "", num_tokens: int = 1000) -> Request:
    return Request(
        request_id=RequestId("r"),
        session_id=session_id,
        prompt_token_ids=tuple(range(num_tokens)),
        sampling=SamplingParams(),
    )


def load(name: str, role: Role, *, queued_tokens: int = 0, sequences: int = 0, blocks: int = 0):
    return InstanceLoad(
        instance=InstanceId(name),
        role=role,
        cost=COST,
        queued=PrefillWork(new_tokens=queued_tokens),
        sequences=sequences,
        indexed_blocks=blocks,
    )


def make_view(*loads: InstanceLoad, cached=None, held=None, key=b"first", turn=0) -> ClusterView:
    rows = (
        dataclasses.replace(
            row,
            prefill_cached_tokens=(cached or {}).get(row.instance, 0),
            decode_cached_tokens=(held or {}).get(row.instance, 0),
        )
        for row in loads
    )
    return view_of(rows, first_block=key, turn=turn)


def pair(**fields):
    return [load("p0", Role.PREFILL, **fields), load("p1", Role.PREFILL, **fields)]


D0 = load("d0", Role.DECODE)
REQUEST = make_request()

loads = st.builds(
    load,
    st.uuids().map(str),
    st.sampled_from(Role),
    queued_tokens=st.integers(0, 5000),
    sequences=st.integers(0, 64),
    blocks=st.integers(0, 3),
)
worlds = st.builds(  # what a view is made of
    lambda items, key, turn, cached: (
        items,
        {
            "key": key,
            "turn": turn,
            "cached": {item.instance: 16 * cached for item in items[::2]},
            "held": {item.instance: 16 * cached for item in items[::3]},
        },
    ),
    st.lists(loads, max_size=8),
    st.binary(min_size=1, max_size=64),
    st.integers(0, 1000),
    st.integers(0, 62),
)
requests = st.sampled_from([make_request(session_id=name) for name in ("", "a", "b", "c")])
all_policies = pytest.mark.parametrize("name", list(POLICIES))


def test_every_name_of_the_config_is_a_policy():
    (field,) = (f for f in dataclasses.fields(SchedulerSection) if f.name == "policy")
    assert set(POLICIES) == set(field.type.__args__)


@all_policies
@given(request=requests, world=worlds)
def test_only_able_instances_are_chosen(name, request, world):
    items, known = world
    role_of = {item.instance: item.role for item in items}
    try:
        route = POLICIES[name](request, make_view(*items, **known))
    except NoInstanceError:
        roles = set(role_of.values())
        assert Role.COLOCATED not in roles and not {Role.PREFILL, Role.DECODE} <= roles
        return
    if role_of[route.prefill] is Role.COLOCATED:
        assert route.decode == route.prefill
    else:
        assert role_of[route.prefill] is Role.PREFILL and role_of[route.decode] is Role.DECODE
    assert route.cached_tokens == known["cached"].get(route.prefill, 0)


@all_policies
@given(request=requests, world=worlds, rng=st.randoms())
def test_the_order_of_the_view_does_not_matter(name, request, world, rng: random.Random):
    items, known = world
    assume(any(item.role is Role.COLOCATED for item in items))
    shuffled = rng.sample(items, len(items))
    route = POLICIES[name](request, make_view(*items, **known))
    assert route == POLICIES[name](request, make_view(*shuffled, **known))


@all_policies
@given(request=requests, world=worlds)
def test_a_view_has_one_answer_and_stays_as_it_is(name, request, world):
    items, known = world
    assume(any(item.role is Role.COLOCATED for item in items))
    view = make_view(*items, **known)
    columns = [*view.queued, view.sequences, view.indexed_blocks, view.prefill_cached_tokens]
    before = [column.copy() for column in columns]
    assert POLICIES[name](request, view) == POLICIES[name](request, view)
    assert all((now == then).all() for now, then in zip(columns, before, strict=True))


@pytest.mark.parametrize("name", ["min_ttft", "longest_prefix"])
@given(cached=st.integers(1, 62), key=st.binary(min_size=1), blocks=st.integers(0, 100))
def test_warm_beats_cold_at_equal_load(name, cached, key, blocks):
    cold = load("cold", Role.PREFILL, queued_tokens=100, sequences=3)
    warm = load("warm", Role.PREFILL, queued_tokens=100, sequences=3, blocks=blocks)
    view = make_view(cold, warm, D0, cached={"warm": 16 * cached}, key=key)
    route = POLICIES[name](REQUEST, view)
    assert (route.prefill, route.cached_tokens) == ("warm", 16 * cached)


@given(queued=st.integers(0, 3000), cached=st.integers(0, 62))
def test_min_ttft_weighs_the_queue_against_the_prefix(queued, cached):
    warm = load("warm", Role.COLOCATED, queued_tokens=queued)
    view = make_view(warm, load("cold", Role.COLOCATED), cached={"warm": 16 * cached})
    warm_s = COST.seconds(warm.queued) + COST.prefill_s(1000, 16 * cached)
    cold_s = COST.prefill_s(1000, 0)
    assume(abs(warm_s - cold_s) > 1e-9)
    assert POLICIES["min_ttft"](REQUEST, view).prefill == ("warm" if warm_s < cold_s else "cold")


@given(queued=st.integers(0, 3000), cached=st.integers(1, 62), gain=st.floats(0, 0.9))
def test_min_ttft_leaves_a_prefix_only_for_more_than_the_gain(queued, cached, gain):
    warm = load("warm", Role.COLOCATED, queued_tokens=queued)
    view = make_view(warm, load("cold", Role.COLOCATED), cached={"warm": 16 * cached})
    view = dataclasses.replace(view, min_gain=gain)
    stay_s = COST.seconds(warm.queued) + COST.prefill_s(1000, 16 * cached)
    leave_s = COST.prefill_s(1000, 0)
    saved_s = stay_s - leave_s
    assume(abs(saved_s - gain * stay_s) > 1e-9)
    leaves = POLICIES["min_ttft"](REQUEST, view).prefill == "cold"
    assert leaves == (saved_s > gain * stay_s)


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=5), st.floats(0, 0.9))
def test_where_all_hold_as_much_the_gain_decides_nothing(queued, gain):
    items = [load(f"c{i}", Role.COLOCATED, queued_tokens=each) for i, each in enumerate(queued)]
    for cached in ({}, {item.instance: 160 for item in items}):
        view = make_view(*items, cached=cached)
        sticky = dataclasses.replace(view, min_gain=gain)
        assert POLICIES["min_ttft"](REQUEST, view) == POLICIES["min_ttft"](REQUEST, sticky)


@all_policies
@given(request=requests, world=worlds, data=st.data())
def test_who_may_not_be_chosen_is_as_good_as_absent(name, request, world, data):
    items, known = world
    view = make_view(*items, **known)
    names = [place.instance for place in view.roster.places]
    avoided = data.draw(st.frozensets(st.sampled_from(names)) if names else st.just(frozenset()))
    is_open = view.roster.open_rows(avoided)
    left = [item for item in items if is_open[view.roster.row_of[item.instance]]]
    assume(view.roster.can_serve)
    route = POLICIES[name](request, dataclasses.replace(view, is_open=is_open))
    assert route == POLICIES[name](request, make_view(*left, **known))


def test_longest_prefix_ignores_the_queue():
    busy = load("busy", Role.COLOCATED, queued_tokens=10**6, sequences=99)
    view = make_view(busy, load("idle", Role.COLOCATED), cached={"busy": 16})
    assert POLICIES["longest_prefix"](REQUEST, view).prefill == "busy"


@given(st.lists(st.integers(0, 40), min_size=2, max_size=8), st.integers(0, 62))
def test_min_ttft_passes_over_a_crowd(sequences, cached):
    items = [load(f"c{i}", Role.COLOCATED, sequences=count) for i, count in enumerate(sequences)]
    view = make_view(*items, cached={"c0": 16 * cached})
    chosen = sequences[int(POLICIES["min_ttft"](REQUEST, view).prefill[1:])]
    assert chosen <= max(8, 1.5 * sum(sequences) / len(sequences))


@given(st.lists(st.integers(0, 20), min_size=2, max_size=8))
def test_least_load_goes_where_the_fewest_are(sequences):
    items = [load(f"c{i}", Role.COLOCATED, sequences=count) for i, count in enumerate(sequences)]
    route = POLICIES["least_load"](REQUEST, make_view(*items))
    assert sequences[int(route.prefill[1:])] == min(sequences)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 100))
def test_round_robin_visits_all_pairs_equally(num_prefill, num_decode, start):
    items = [load(f"p{i}", Role.PREFILL) for i in range(num_prefill)]
    items += [load(f"d{i}", Role.DECODE) for i in range(num_decode)]
    period = num_prefill * num_decode
    routes = [
        POLICIES["round_robin"](REQUEST, make_view(*items, turn=start * period + turn))
        for turn in range(period)
    ]
    assert len({(route.prefill, route.decode) for route in routes}) == period


@given(st.sets(st.uuids().map(str), min_size=2, max_size=8), st.text(min_size=1))
def test_session_keeps_its_place_when_another_leaves(names, session_id):
    items = [load(name, Role.COLOCATED, sequences=index) for index, name in enumerate(names)]
    request = make_request(session_id=session_id)
    home = POLICIES["session"](request, make_view(*items)).prefill
    for gone in items:
        if gone.instance != home:
            rest = [item for item in items if item is not gone]
            assert POLICIES["session"](request, make_view(*rest)).prefill == home


def test_session_ignores_the_prompt_and_without_one_goes_by_the_first_block():
    items = [load(f"c{i}", Role.COLOCATED) for i in range(8)]
    keys = [bytes([key]) for key in range(50)]
    policy = POLICIES["session"]
    homes = {policy(make_request(session_id="s"), make_view(*items, key=k)).prefill for k in keys}
    assert len(homes) == 1
    assert len({policy(REQUEST, make_view(*items, key=key)).prefill for key in keys}) > 3


@pytest.mark.parametrize("name", ["min_ttft", "longest_prefix"])
def test_decode_goes_where_the_history_is_unless_it_is_crowded(name):
    here, there = load("d0", Role.DECODE, sequences=1), load("d1", Role.DECODE)
    view = make_view(*pair(), here, there, held={"d0": 992})
    assert POLICIES[name](REQUEST, view).decode == "d0"
    crowded = make_view(*pair(), load("d0", Role.DECODE, sequences=3), there, held={"d0": 992})
    assert POLICIES["min_ttft"](REQUEST, crowded).decode == "d1"


@pytest.mark.parametrize("name", ["min_ttft", "longest_prefix", "least_load"])
@given(key=st.binary(min_size=1))
def test_ties_go_to_the_fewest_blocks(name, key):
    items = [load("c0", Role.COLOCATED, blocks=2), load("c1", Role.COLOCATED, blocks=1)]
    assert POLICIES[name](REQUEST, make_view(*items, key=key)).prefill == "c1"


@all_policies
def test_cold_traffic_splits_evenly_over_idle_instances(name):
    """640 requests of 64 prefix groups, one at a time, nothing cached or everything."""
    for remembers in (False, True):
        blocks: collections.Counter[str] = collections.Counter()
        homes: dict[int, set[str]] = collections.defaultdict(set)
        split: collections.Counter[str] = collections.Counter()
        for turn in range(640):
            group = turn * 7 % 64
            items = [load(n, Role.COLOCATED, blocks=blocks[n]) for n in ("c0", "c1")]
            key = group.to_bytes(4, "little") * 16
            cached = dict.fromkeys(homes[group], 512)
            chosen = POLICIES[name](REQUEST, make_view(*items, cached=cached, key=key, turn=turn))
            split[chosen.prefill] += 1
            if remembers and chosen.prefill not in homes[group]:
                homes[group].add(chosen.prefill)
                blocks[chosen.prefill] += 32
        assert 220 <= split["c0"] <= 420, (name, remembers, split)


def test_rendezvous_ranks_differ_by_key_and_spread():
    hashes = np.array([hash_of(f"i{i}".encode()) for i in range(4)], np.uint64)
    wins = collections.Counter(
        int(rendezvous(str(key).encode(), hashes).argmin()) for key in range(2000)
    )
    assert all(400 < wins[row] < 600 for row in range(4))
