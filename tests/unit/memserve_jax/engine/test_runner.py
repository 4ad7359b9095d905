"""Compiled shapes: the ladder's at warm-up, none after."""

import numpy as np
import pytest

from memserve_jax.core.types import SamplingParams
from memserve_jax.engine.buckets import make_ladder
from memserve_jax.engine.inputs import RowTable
from memserve_jax.engine.runner import Runner
from tests.helpers.engines import bundle_on, make_engine, make_request, random_prompt, run


def random_sampling(rng) -> SamplingParams:
    return SamplingParams(
        max_tokens=int(rng.integers(1, 20)),
        temperature=float(rng.choice([0.0, 0.7, 1.3])),
        top_k=int(rng.choice([0, 5])),
        top_p=float(rng.choice([1.0, 0.8])),
        repetition_penalty=float(rng.choice([1.0, 1.2])),
        logprobs=int(rng.integers(0, 3)) if rng.random() < 0.3 else None,
        seed=int(rng.integers(0, 2**63)),
        ignore_eos=True,
    )


def test_a_random_trace_compiles_the_ladder_at_warm_up_and_nothing_after():
    engine, pool = make_engine(shares_steps=False)
    ladder = make_ladder(max_running=4, chunk_tokens=32)
    told = []
    engine.warm_up(lambda done, total, what: told.append((done, total, what)))
    assert engine._runner.num_compiled == len(ladder) == len(told)
    assert told[-1] == (len(ladder), len(ladder), "prefill, tokens 32")
    rng = np.random.default_rng(0)
    to_come = [f"r{i}" for i in range(40)]
    while to_come or engine.has_work:
        for _ in range(min(int(rng.integers(0, 3)), len(to_come))):
            name = to_come.pop()
            prompt = random_prompt(int(rng.integers(1, 120)), seed=int(rng.integers(0, 4)))
            engine.submit(make_request(name, prompt, random_sampling(rng)))
        engine.step()
        if rng.random() < 0.02 and engine._sequences:
            engine.cancel(next(iter(engine._sequences)))
    engine.check()
    assert engine._runner.num_compiled == len(ladder)
    assert pool.num_leased == 0


def test_warm_up_leaves_no_trace():
    engine, pool = make_engine()
    before = [np.asarray(page) for page in pool.pages.k]
    engine.warm_up()
    for page, old in zip(pool.pages.k, before, strict=True):
        np.testing.assert_array_equal(page, old)
    engine.submit(make_request("a", random_prompt(9)))
    run(engine)


def test_steps_of_another_size_are_refused():
    engine, pool = make_engine()
    rows = RowTable(num_rows=3, table_width=2)
    ladder = make_ladder(max_running=3, chunk_tokens=16)
    with pytest.raises(ValueError, match="allowed: 3 of"):
        Runner(bundle_on(), pool, ladder=ladder, rows=rows, steps=engine.steps)
