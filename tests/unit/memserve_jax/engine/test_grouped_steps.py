"""Groups of layers, one after the other, are one mixed step."""

import dataclasses

import jax
import numpy as np
import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import MemPoolSection
from memserve_jax.core.types import InstanceId, Role, SamplingParams
from memserve_jax.engine.buckets import make_ladder
from memserve_jax.engine.inputs import Column, RowTable
from memserve_jax.engine.runner import Grouping, Runner, make_grouping
from memserve_jax.engine.steps import Steps
from memserve_jax.engine.transfer_mode import ModeSwitch
from memserve_jax.mempool.pool import MemPool
from tests.helpers.engines import random_prompt
from tests.helpers.tiny import TINY_SHAPE, tiny_bundle

SHAPE = dataclasses.replace(TINY_SHAPE, num_layers=5)
S, ROWS, CHUNK = 8, 2, 16
LADDER = make_ladder(max_running=ROWS, chunk_tokens=CHUNK, decodes=False)


GROUPS = ((0, 2), (2, 2), (4, 1))
WIDTH = Column.TABLE + 4


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    return {tp: tiny_bundle(path, shape=SHAPE, tp=tp) for tp in (1, 2)}


@pytest.fixture(scope="module")
def steps(bundles):
    return {tp: Steps(bundles[tp], num_rows=ROWS, line_width=WIDTH) for tp in (1, 2)}


def make_runner(bundle, grouping=None, steps=None):
    pool = MemPool(
        instance=InstanceId("p0"),
        epoch=1,
        layout=bundle.config.layout(S, bundle.dtype),
        mesh=bundle.mesh,
        hbm_blocks=8,
        clock=ManualClock(),
    )
    rows = RowTable(num_rows=ROWS, table_width=4)
    return (
        Runner(bundle, pool, ladder=LADDER, rows=rows, grouping=grouping, steps=steps),
        pool,
        rows,
    )


def prefill(runner, rows, after_group=None):
    """Computes two prompts, the longer one in two chunks; returns what was sampled."""
    prompts = {0: random_prompt(21), 1: random_prompt(6, seed=1)}
    for row in prompts:
        rows.open(row, SamplingParams(temperature=0.7, logprobs=2), seed=row + 5)
        rows.set_blocks(row, [3 * row + block for block in (1, 0, 2)])
    found = []
    for chunks in ({0: (0, 10), 1: (0, 6)}, {0: (10, 21)}):
        for row, (start, stop) in chunks.items():
            rows.schedule(
                row, position=start, num_new=stop - start, samples=stop == len(prompts[row])
            )
        tokens = [prompts[row][start:stop] for row, (start, stop) in chunks.items()]
        step = runner.dispatch_mixed(list(chunks), tokens, sum(map(len, tokens)), after_group)
        found.append(runner.read(step))
    return found


@pytest.mark.parametrize(
    ("tp", "groups"), [(1, GROUPS), (1, ((0, 3), (3, 2))), (2, ((0, 3), (3, 2)))]
)
def test_groups_compute_what_the_whole_step_does(bundles, steps, tp, groups):
    runner, pool, rows = make_runner(bundles[tp], steps=steps[tp])
    wanted = prefill(runner, rows)
    grouping = Grouping(groups, is_always=True)
    grouped, grouped_pool, rows = make_runner(bundles[tp], grouping, steps[tp])
    for found, want in zip(prefill(grouped, rows), wanted, strict=True):
        assert found.token_ids == want.token_ids
        np.testing.assert_allclose(found.logprobs, want.logprobs, atol=1e-4)
    found, wanted = jax.tree.leaves(grouped_pool.pages), jax.tree.leaves(pool.pages)
    for page, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(page, want, atol=1e-4)


def test_each_group_is_told_of_before_the_next_is_dispatched(bundles, steps):
    runner, pool, rows = make_runner(bundles[1], Grouping(GROUPS, is_always=False), steps[1])
    told = []

    def after_group(group):
        before = told[-1][1] if told else (None,) * 5
        changed = [old is not new for old, new in zip(before, pool.pages.k, strict=True)]
        told.append((group, pool.pages.k, changed))

    prefill(runner, rows, after_group)
    assert [group for group, _, _ in told] == [*GROUPS, *GROUPS]
    for group, _, changed in told[1:]:
        first, count = group
        assert changed == [first <= layer < first + count for layer in range(5)]


def test_who_has_no_groups_is_told_once_of_all_layers(bundles, steps):
    runner, _, rows = make_runner(bundles[1], steps=steps[1])
    told = []
    prefill(runner, rows, told.append)
    assert told == [(0, 5), (0, 5)]


@pytest.mark.parametrize(
    ("is_always", "num_compiled", "num_told"),
    [(True, 3 * len(LADDER), len(LADDER)), (False, 4 * len(LADDER), 2 * len(LADDER))],
)
def test_the_ladder_of_groups_is_warmed_up_and_counted(bundles, is_always, num_compiled, num_told):
    runner, _, rows = make_runner(bundles[1], Grouping(GROUPS, is_always=is_always))
    told = []
    runner.warm_up(lambda done, total, what: told.append((done, total, what)))
    assert runner.num_compiled == num_compiled
    assert told[-1] == (num_told, num_told, f"prefill by layer, tokens {CHUNK}")
    prefill(runner, rows, lambda group: None)
    prefill(runner, rows)
    assert runner.num_compiled == num_compiled


def test_a_group_updates_its_pages_in_place(bundles, steps):
    runner, pool, rows = make_runner(bundles[1], Grouping(GROUPS, is_always=True), steps[1])
    places = [page.unsafe_buffer_pointer() for page in jax.tree.leaves(pool.pages)]
    prefill(runner, rows)
    assert [page.unsafe_buffer_pointer() for page in jax.tree.leaves(pool.pages)] == places


def test_only_prefill_instances_that_may_send_by_layer_have_groups(bundles):
    layout = bundles[1].config.layout(S, "float32")

    def grouping(role, num_groups=4, **mempool):
        section = MemPoolSection(layer_groups=num_groups, **mempool)
        return make_grouping(role, layout, section, ModeSwitch(section))

    assert grouping(Role.PREFILL) is None
    assert grouping(Role.PREFILL, transfer_mode="by_request") is None
    assert grouping(Role.DECODE, transfer_mode="by_layer") is None
    assert grouping(Role.PREFILL, transfer_mode="by_layer", num_groups=1) is None
    groups = ((0, 2), (2, 1), (3, 1), (4, 1))
    assert grouping(Role.PREFILL, transfer_mode="by_layer") == Grouping(groups, True)
    assert grouping(Role.PREFILL, transfer_mode="auto") == Grouping(groups, False)
