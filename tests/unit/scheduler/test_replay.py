"""Whether, when and how a request is asked for again."""

import grpc
import hypothesis.strategies as st
import pytest
from hypothesis import given

from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.types import Request, RequestId, SamplingParams
from scheduler.replay import LONGEST_PAUSE_S, MAX_CRASHES, ReplayPolicy, resumed

Code = grpc.StatusCode
POLICY = ReplayPolicy(max_replays=3, wait_s=30.0, pause_s=0.05)
REQUEST = Request(
    request_id=RequestId("r"), session_id="", prompt_token_ids=(1, 2), sampling=SamplingParams()
)
CLIENTS = (
    Code.INVALID_ARGUMENT,
    Code.ALREADY_EXISTS,
    Code.DEADLINE_EXCEEDED,
    Code.UNAUTHENTICATED,
    Code.PERMISSION_DENIED,
)
INSTANCES = (Code.UNAVAILABLE, Code.CANCELLED, Code.FAILED_PRECONDITION, Code.NOT_FOUND)


@pytest.mark.parametrize("code", CLIENTS)
def test_what_the_client_did_wrong_is_never_tried_again(code):
    for failures in ([code], [Code.UNAVAILABLE, code]):
        assert not POLICY.allows(failures, has_begun=True)


@pytest.mark.parametrize("code", INSTANCES)
def test_what_an_instance_did_is_tried_again_so_many_times(code):
    assert [POLICY.allows([code] * count, has_begun=False) for count in (1, 3, 4)] == [
        True,
        True,
        False,
    ]
    never = ReplayPolicy(max_replays=0, wait_s=30.0, pause_s=0.05)
    assert not never.allows([code], has_begun=True)


def test_a_full_instance_refuses_who_has_nothing_yet():
    assert not POLICY.allows([Code.RESOURCE_EXHAUSTED], has_begun=False)
    assert POLICY.allows([Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED], has_begun=True)


def test_a_request_over_which_engines_fail_is_not_sent_to_a_third():
    assert POLICY.allows([Code.INTERNAL], has_begun=True)
    assert not POLICY.allows([Code.UNKNOWN, Code.UNAVAILABLE, Code.INTERNAL], has_begun=True)
    assert MAX_CRASHES == 2


@given(st.lists(st.sampled_from(Code), min_size=1, max_size=20), st.booleans())
def test_attempts_are_bounded(failures, has_begun):
    if POLICY.allows(failures, has_begun=has_begun):
        assert len(failures) <= POLICY.max_replays


@given(st.integers(1, 10_000), st.floats(0.0, 1.0, exclude_max=True))
def test_pauses_grow_are_bounded_and_all_jitter(num_failures, draw):
    pause_s = POLICY.pause_of(num_failures, draw)
    assert 0.0 <= pause_s <= min(LONGEST_PAUSE_S, 0.05 * 2.0 ** min(num_failures - 1, 50))
    assert pause_s <= POLICY.pause_of(num_failures + 1, draw)
    assert POLICY.pause_of(num_failures, 0.0) == 0.0


def test_a_replay_asks_for_the_rest_under_a_name_of_its_own():
    assert resumed(REQUEST, 0, []) is REQUEST
    again = resumed(REQUEST, 2, [5, 6])
    assert (again.request_id, again.resumed_token_ids) == ("r~2", (5, 6))
    assert again.given_token_ids == (1, 2, 5, 6)
    assert resumed(again, 1, [5, 6, 7]).request_id == "r~3"


def test_the_config_says_how_far_to_go():
    section = SchedulerSection(max_replays=1, replay_wait_s=2.0, replay_pause_s=0.5)
    assert ReplayPolicy.of(section) == ReplayPolicy(max_replays=1, wait_s=2.0, pause_s=0.5)
