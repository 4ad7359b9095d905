"""The cost by operators: steps of the ladder, tiles of attention, and sums that skip the tiles."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from memserve_jax.core.cost_model import PrefillCost, PrefillWork, WorkColumns
from memserve_jax.core.operator_cost import Attention, OperatorCost

COST = OperatorCost(
    tp=1,
    prompt_s=2e-3,
    launch_s=1e-3,
    rungs=(16, 32, 64, 128, 256, 512),
    matmul_s=(0.01, 0.012, 0.02, 0.03, 0.05, 0.09),
    attention=Attention(
        query_tile_tokens=128, key_tile_tokens=256, s_per_key=1e-6, s_per_pair=1e-7
    ),
)

tiles = st.builds(
    lambda query, key: dataclasses.replace(
        COST.attention, query_tile_tokens=query, key_tile_tokens=key
    ),
    st.sampled_from((1, 16, 64, 128)),
    st.sampled_from((1, 16, 96, 128, 256)),
)
prompts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))


def tile_by_tile(attention, new, before, padded):
    tile = 1 if new == 1 else min(attention.query_tile_tokens, padded)
    step, seconds, end = attention.key_tile_tokens, 0.0, before + new
    for start in range(before, end, tile):
        keys = -(-min(start + tile, end) // step) * step
        seconds += keys * (attention.s_per_key + tile * attention.s_per_pair)
    return seconds


@given(tiles, st.integers(1, 512), st.integers(0, 3000))
def test_attention_is_its_tiles(attention, new, before):
    padded = min(rung for rung in COST.rungs if rung >= new)
    found = attention.seconds(padded, [(new, before), (0, 5)])
    assert found == pytest.approx(tile_by_tile(attention, new, before, padded))


@given(tiles, prompts)
def test_a_prefill_is_its_steps(attention, prompt):
    num_tokens, done = prompt
    cost = dataclasses.replace(COST, attention=attention)
    seconds, cached = cost.prompt_s, done
    while done < num_tokens:
        new = min(512, num_tokens - done)
        seconds += cost.step_s(new, [(new, done)])
        done += new
    assert cost.prefill_s(num_tokens, cached) == pytest.approx(seconds)


@given(prompts, st.lists(st.integers(0, 2999), min_size=1))
def test_a_column_of_prompts_is_each_prompt(prompt, held):
    num_tokens, _ = prompt
    cached = np.array([min(each, num_tokens - 1) for each in held])
    each_s = [COST.prefill_s(num_tokens, one) for one in cached.tolist()]
    assert COST.prefill_s_each(num_tokens, cached).tolist() == pytest.approx(each_s)


def test_a_step_is_padded_to_its_rung():
    assert COST.step_s(129, []) == COST.step_s(256, []) == pytest.approx(0.051)
    assert COST.step_s(1024, []) == pytest.approx(0.181)  # waves of the largest


@given(st.lists(prompts, min_size=1, max_size=8))
def test_queues_in_columns_are_the_queues(queue):
    works = [PrefillWork.of(*prompt) for prompt in queue]
    columns = WorkColumns(
        np.array([work.prompts for work in works]),
        np.array([work.new_tokens for work in works]),
        np.array([work.token_pairs for work in works]),
    )
    each_s = [COST.seconds(work) for work in works]
    assert COST.seconds_each(columns).tolist() == pytest.approx(each_s)
    assert COST.seconds(PrefillWork()) == 0
    assert isinstance(COST, PrefillCost)


def test_a_queue_of_whole_chunks_costs_what_they_do():
    work = PrefillWork.of(8192, 0)
    alone_s = COST.prefill_s(8192, 0)
    assert COST.seconds(work) == pytest.approx(alone_s, rel=0.02)
    short = PrefillWork.of(20, 0)  # by itself it would take a step
    assert COST.seconds(short) < COST.prefill_s(20, 0)


def test_tensor_parallelism_divides_what_the_device_does():
    both = COST.on(tokens_per_s=5.0, tp=2)
    assert both.launch_s == COST.launch_s and both.prompt_s == COST.prompt_s
    assert both.matmul_s[-1] == pytest.approx(COST.matmul_s[-1] / 2)
    assert both.attention.tile_s(128) == pytest.approx(COST.attention.tile_s(128) / 2)
    assert COST.on(tokens_per_s=0.0, tp=1) == COST
