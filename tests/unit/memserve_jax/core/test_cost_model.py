"""The cost of a prefill: whole numbers of work, seconds linear in them."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from memserve_jax.core.cost_model import (
    CostModel,
    FetchCost,
    FetchOffer,
    PrefillCost,
    PrefillWork,
    WorkColumns,
)

COST = CostModel(fixed_s=1e-3, s_per_token=1e-4, s_per_token_pair=1e-8)

prompts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))


@given(prompts)
def test_pairs_are_counted_one_by_one(prompt):
    num_tokens, num_cached = prompt
    work = PrefillWork.of(num_tokens, num_cached)
    attended = sum(position + 1 for position in range(num_cached, num_tokens))
    assert work == PrefillWork(prompts=1, new_tokens=num_tokens - num_cached, token_pairs=attended)


@given(st.lists(prompts, max_size=20), st.randoms())
def test_the_order_of_a_queue_does_not_matter(queue, rng):
    works = [PrefillWork.of(*prompt) for prompt in queue]
    shuffled = rng.sample(works, len(works))
    total, other = sum(works, PrefillWork()), sum(shuffled, PrefillWork())
    assert total == other
    assert COST.seconds(total) == COST.seconds(other)
    for work in works:
        total -= work
    assert total == PrefillWork()


@given(prompts)
def test_more_cached_costs_less(prompt):
    num_tokens, num_cached = prompt
    assert COST.prefill_s(num_tokens, num_cached) <= COST.prefill_s(num_tokens, 0)


def test_seconds():
    assert COST.prefill_s(100, 0) == pytest.approx(1e-3 + 100e-4 + 5050e-8)
    assert COST.seconds(PrefillWork()) == 0


@given(prompts, st.lists(st.integers(0, 4999), min_size=1))
def test_a_column_of_prompts_is_each_prompt(prompt, held):
    num_tokens, _ = prompt
    cached = np.array([min(each, num_tokens - 1) for each in held])
    each_s = [COST.prefill_s(num_tokens, one) for one in cached.tolist()]
    assert COST.prefill_s_each(num_tokens, cached).tolist() == pytest.approx(each_s)


def test_an_instance_without_a_rate_costs_as_configured():
    assert isinstance(COST, PrefillCost)
    assert COST.on(tokens_per_s=0.0, tp=2) == COST
    assert COST.on(tokens_per_s=1e5, tp=2) == COST.at_rate(1e5)


def test_a_step_costs_its_tokens_and_their_pairs():
    step_s = COST.step_s(12, [(10, 100), (2, 0)])
    assert step_s == pytest.approx(12e-4 + (10 * 100 + 55 + 3) * 1e-8)


def test_a_measured_rate_gives_the_cost_of_a_token_and_keeps_the_shares():
    fast = COST.at_rate(1e5)
    assert fast.s_per_token == pytest.approx(1e-5)
    assert fast.fixed_s == pytest.approx(1e-4)
    assert fast.s_per_token_pair == pytest.approx(1e-9)
    nothing = CostModel(fixed_s=1.0, s_per_token=0.0, s_per_token_pair=0.0)
    assert nothing.at_rate(10.0).prefill_s(20, 0) == pytest.approx(3.0)


def test_fetching_pays_where_it_is_quicker_than_computing():
    cost = FetchCost(
        prefill=CostModel(fixed_s=0.0, s_per_token=1e-3, s_per_token_pair=0.0),
        fixed_s=0.01,
        bytes_per_s=1e6,
    )
    offer = FetchOffer(num_tokens=100, num_held=16, num_offered=96, num_blocks=5, num_bytes=60_000)
    assert cost.predicted_s(offer.num_bytes) == pytest.approx(0.07)
    assert cost.saved_s(offer) == pytest.approx(0.08)
    assert cost.pays(offer)
    assert not cost.pays(dataclasses.replace(offer, num_bytes=80_000))


@given(st.lists(st.tuples(prompts, st.integers(0, 62)), min_size=1, max_size=20))
def test_columns_are_the_rows(queue):
    works = [PrefillWork.of(*prompt) for prompt, _ in queue]
    cached = np.array([16 * held for _, held in queue])
    columns = WorkColumns(
        np.array([work.prompts for work in works]),
        np.array([work.new_tokens for work in works]),
        np.array([work.token_pairs for work in works]),
    ).with_prompt(1000, cached)
    sums = [
        work + PrefillWork.of(1000, int(held)) for work, held in zip(works, cached, strict=True)
    ]
    assert columns.new_tokens.tolist() == [work.new_tokens for work in sums]
    assert columns.token_pairs.tolist() == [work.token_pairs for work in sums]
    assert COST.seconds_each(columns) == pytest.approx([COST.seconds(work) for work in sums])
    last = columns.at(np.array([len(works) - 1]))
    assert COST.seconds_each(last) == pytest.approx([COST.seconds(sums[-1])])
