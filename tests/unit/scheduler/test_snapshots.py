"""The view of a request: columns of what the parts of the state say."""

import pytest

from memserve_jax.core.block_keys import block_keys
from memserve_jax.core.block_names import BlockNames
from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.cost_model import CostModel, PrefillWork
from memserve_jax.core.types import InstanceId, Request, RequestId, Role, Route, SamplingParams
from scheduler.snapshots import Snapshots
from scheduler.state import State, make_state
from tests.helpers.fake_instance import make_status

S = 16
COST = CostModel(fixed_s=1e-3, s_per_token=1e-4, s_per_token_pair=0.0)


def make_request(num_tokens: int) -> Request:
    return Request(
        request_id=RequestId("r"),
        session_id="",
        prompt_token_ids=tuple(range(num_tokens)),
        sampling=SamplingParams(),
    )


def view_of(state: State, request: Request, **options):
    keys = block_keys(request.prompt_token_ids, S)
    names = BlockNames(request.cache_salt, keys)
    return Snapshots(state, COST).view(request, keys, names, turn=7, **options)


@pytest.fixture
def state() -> State:
    state = make_state(SchedulerSection(), ManualClock(1.0), model="tiny")
    state.cluster.register(make_status("p0", role="prefill", prefill_tokens_per_s=5000.0))
    state.cluster.register(make_status("d0", role="decode"))
    state.cluster.register(make_status("p1", role="prefill"))
    return state


def test_columns_are_by_name_and_by_role(state):
    request = make_request(64)
    names = list(BlockNames("", block_keys(request.prompt_token_ids, S)))
    state.trees[Role.PREFILL].confirm(InstanceId("p1"), names, 1.0)
    state.trees[Role.DECODE].confirm(InstanceId("d0"), names[:2], 1.0)
    flight = state.flights.admit(RequestId("other"))
    route = Route(prefill=InstanceId("p0"), decode=InstanceId("d0"))
    state.flights.depart(flight, route, PrefillWork.of(100, 0))
    view = view_of(state, request)
    assert [place.instance for place in view.roster.places] == ["d0", "p0", "p1"]
    assert view.prefill_cached_tokens.tolist() == [0, 0, 48]  # the last token is computed
    assert view.decode_cached_tokens.tolist() == [32, 0, 0]
    assert view.indexed_blocks.tolist() == [2, 0, 4]
    assert view.queued.new_tokens.tolist() == [0, 100, 0]
    assert view.sequences.tolist() == [1, 1, 0]
    assert view.turn == 7 and len(view.first_block) == 4 * S
    rates = {view.roster.instance(rows[0]): cost for cost, rows in view.costs}
    assert rates[InstanceId("d0")] == COST
    assert rates[InstanceId("p0")].s_per_token == pytest.approx(1 / 5000)


def test_who_is_avoided_has_a_row_that_is_not_open(state):
    view = view_of(state, make_request(64), avoid=frozenset({InstanceId("p0"), InstanceId("d0")}))
    assert view.is_open is not None and view.is_open.tolist() == [True, False, True]
    assert view.prefillers().tolist() == [2] and view.decoders().tolist() == [0]
    assert view_of(state, make_request(64)).is_open is None


def test_a_short_prompt_goes_by_all_of_it(state):
    assert len(view_of(state, make_request(3)).first_block) == 12


def test_who_does_not_serve_has_no_row(state):
    state.cluster.member("p1").is_draining = True
    view = view_of(state, make_request(40))
    assert [place.instance for place in view.roster.places] == ["d0", "p0"]
