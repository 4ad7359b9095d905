import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.bench.metrics import Objective, RequestRecord, percentile, spread, summarize

SAMPLES = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)
RECORD = RequestRecord(
    request_id="r0",
    session_id="s0",
    turn=0,
    status="OK",
    sent_s=10.0,
    token_times_s=(10.5, 10.7, 11.1),
    ended_s=11.2,
    token_ids=(1, 2, 3, 4),
    prompt_tokens=100,
    cached_tokens=25,
    kv_blocks_moved=7,
    kv_bytes_moved=700,
    queue_s=0.1,
)
FAILED = RequestRecord(
    request_id="r1",
    session_id="s1",
    turn=0,
    status="UNAVAILABLE",
    sent_s=12.0,
    token_times_s=(12.5,),
    token_ids=(1,),
    ended_s=13.0,
)


@given(SAMPLES, st.sampled_from([0, 50, 90, 99, 100]))
def test_percentiles_are_those_of_numpy(values, percent):
    assert percentile(sorted(values), percent) == pytest.approx(np.percentile(values, percent))


@given(SAMPLES)
def test_a_spread_is_that_of_numpy(values):
    found = spread(values)
    assert found.avg == pytest.approx(np.mean(values))
    assert (found.p50, found.p90, found.p99) == pytest.approx(
        tuple(np.percentile(values, [50, 90, 99]))
    )
    assert found.max == max(values)


def test_an_empty_sample_has_no_spread():
    assert spread([]) is None


def test_latencies_of_one_request():
    assert RECORD.ttft_s == pytest.approx(0.5)
    assert RECORD.jct_s == pytest.approx(1.2)
    assert RECORD.tpot_s == pytest.approx(0.6 / 3)  # four tokens came in three messages
    assert RECORD.gaps_s == pytest.approx((0.2, 0.4))


def test_latencies_that_do_not_exist_are_none():
    silent = dataclasses.replace(RECORD, token_times_s=(), token_ids=())
    assert silent.ttft_s is None and silent.tpot_s is None and silent.gaps_s == ()
    single = dataclasses.replace(RECORD, token_times_s=(10.5,), token_ids=(1,))
    assert single.ttft_s == pytest.approx(0.5) and single.tpot_s is None


def test_a_summary_counts_answers_that_came_whole():
    summary = summarize([RECORD, FAILED])
    assert (summary.num_requests, summary.num_ok) == (2, 1)
    assert summary.errors == {"UNAVAILABLE": 1}
    assert summary.duration_s == pytest.approx(3.0)  # 10.0 to 13.0
    assert summary.output_tokens == 4 and summary.prompt_tokens == 100
    assert summary.output_tokens_per_s == pytest.approx(4 / 3)
    assert summary.prompt_tokens_per_s == pytest.approx(100 / 3)
    assert summary.requests_per_s == pytest.approx(1 / 3)
    assert summary.hit_rate == pytest.approx(0.25)
    assert (summary.kv_blocks_moved, summary.kv_bytes_moved) == (7, 700)
    assert summary.tokens_per_message == pytest.approx(4 / 3)
    assert summary.ttft_s.avg == pytest.approx(0.5)
    assert summary.itl_s.max == pytest.approx(0.4)
    assert summary.goodput_per_s is None


def test_a_summary_of_nothing_is_empty():
    summary = summarize([])
    assert summary.num_requests == 0 and summary.ttft_s is None
    assert summary.output_tokens_per_s == 0.0 and summary.hit_rate == 0.0


@pytest.mark.parametrize(
    ("objective", "good"),
    [
        (Objective(ttft_s=0.6), 1),
        (Objective(ttft_s=0.4), 0),
        (Objective(ttft_s=0.6, tpot_s=0.1), 0),
        (Objective(tpot_s=0.3), 1),
    ],
)
def test_goodput_counts_requests_within_the_limits(objective, good):
    summary = summarize([RECORD, FAILED], objective)
    assert summary.goodput_per_s == pytest.approx(good / 3)
