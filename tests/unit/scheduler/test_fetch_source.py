"""Which peer a prefill instance is pointed to."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.core.cost_model import CostModel
from memserve_jax.core.types import (
    FetchSource,
    InstanceId,
    Request,
    RequestId,
    Role,
    Route,
    SamplingParams,
)
from scheduler.fetch_source import fetch_source
from scheduler.view import ClusterView, InstanceLoad, view_of

S = 16
COST = CostModel(fixed_s=1e-3, s_per_token=1e-4, s_per_token_pair=0.0)


def request_of(num_tokens: int) -> Request:
    return Request(
        request_id=RequestId("r"),
        session_id="",
        prompt_token_ids=tuple(range(num_tokens)),
        sampling=SamplingParams(),
    )


def view_with(prefill: dict[str, int], decode: dict[str, int], busy: dict[str, int]) -> ClusterView:
    loads = [
        InstanceLoad(
            instance=InstanceId(name),
            role=role,
            cost=COST,
            sequences=busy.get(name, 0),
            prefill_cached_tokens=held if role is Role.PREFILL else 0,
            decode_cached_tokens=held if role is Role.DECODE else 0,
        )
        for role, names in ((Role.PREFILL, prefill), (Role.DECODE, decode))
        for name, held in names.items()
    ]
    return view_of(loads, first_block=b"k")


def route_to(prefill: str, cached: int) -> Route:
    return Route(
        prefill=InstanceId(prefill), decode=InstanceId("d0"), cached_tokens=cached, reason=""
    )


def test_the_peer_that_holds_most():
    view = view_with({"p0": 16, "p1": 48}, {"d0": 32}, {})
    assert fetch_source(request_of(65), route_to("p0", 16), view, S) == FetchSource(
        InstanceId("p1"), 48
    )


def test_a_decode_instance_can_be_the_source():
    view = view_with({"p0": 16}, {"d0": 64}, {})
    assert fetch_source(request_of(65), route_to("p0", 16), view, S) == FetchSource(
        InstanceId("d0"), 64
    )


def test_nobody_where_the_prefill_instance_holds_as_much():
    view = view_with({"p0": 48, "p1": 48}, {"d0": 48}, {})
    assert fetch_source(request_of(65), route_to("p0", 48), view, S) is None


def test_the_last_token_is_computed_whoever_holds_it():
    view = view_with({"p0": 48}, {"d0": 64}, {})
    assert fetch_source(request_of(64), route_to("p0", 48), view, S) is None


def test_of_equals_the_least_busy():
    view = view_with({"p0": 0, "p1": 32, "p2": 32}, {}, {"p1": 3, "p2": 1})
    found = fetch_source(request_of(65), route_to("p0", 0), view, S)
    assert found == FetchSource(InstanceId("p2"), 32)


@given(
    held=st.lists(st.integers(0, 8), min_size=2, max_size=6),
    num_tokens=st.integers(1, 140),
)
def test_a_source_always_spares_whole_blocks(held: list[int], num_tokens: int):
    usable = (num_tokens - 1) // S
    tokens = {f"p{i}": min(blocks, usable) * S for i, blocks in enumerate(held)}
    view = view_with(tokens, {}, {})
    found = fetch_source(request_of(num_tokens), route_to("p0", tokens["p0"]), view, S)
    best = max(tokens.values())
    if best <= tokens["p0"]:
        assert found is None
    else:
        assert found is not None
        assert found.num_tokens == best == tokens[found.instance]
        assert found.num_tokens % S == 0
        assert found.num_tokens < num_tokens


def test_who_is_avoided_is_not_asked_to_send():
    view = view_with({"p0": 16, "p1": 160}, {"d0": 64}, {})
    assert fetch_source(request_of(500), route_to("p0", 16), view, S) == FetchSource(
        InstanceId("p1"), 160
    )
    is_open = view.roster.open_rows(frozenset({InstanceId("p1")}))
    view = dataclasses.replace(view, is_open=is_open)
    assert fetch_source(request_of(500), route_to("p0", 16), view, S) == FetchSource(
        InstanceId("d0"), 64
    )
