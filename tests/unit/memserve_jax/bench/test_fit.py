"""The fit from an engine's times to a file, with an engine that takes the time it is told."""

import pytest

from memserve_jax.bench.fit import (
    PERCENTS,
    Fitted,
    device_name,
    fit_prefill,
    measure,
    to_cost_file,
)
from memserve_jax.bench.fit_fetch import FetchFit
from memserve_jax.core.config import Config
from memserve_jax.core.cost_file import parse_cost_file, to_values
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.operator_cost import Attention, OperatorCost

RUNGS = (16, 32, 64)
TRUTH = OperatorCost(
    tp=1,
    prompt_s=1e-3,
    launch_s=2e-3,
    rungs=RUNGS,
    matmul_s=(2e-3, 4e-3, 8e-3),
    attention=Attention(query_tile_tokens=1, key_tile_tokens=1, s_per_key=1e-6, s_per_pair=0.0),
)
LENGTHS = (12, 24, 48, 64, 100, 128, 160, 200)
HELD_OUT = (40, 90, 150)


class TimedEngine:
    """Takes what `TRUTH` says, and each round a little more."""

    rungs = RUNGS

    def __init__(self):
        self.asked = []

    def held_tokens(self, num_tokens, percent):
        return num_tokens * percent // 100 // 16 * 16

    def prefill_s(self, num_tokens, num_held):
        self.asked.append((num_tokens, num_held))
        return TRUTH.prefill_s(num_tokens, num_held)


def test_every_length_is_timed_at_every_share_in_rounds():
    engine, told = TimedEngine(), []
    points = measure(
        engine, lengths=(100, 40), num_rounds=5, progress=lambda *said: told.append(said)
    )
    kinds = [
        (length, engine.held_tokens(length, percent))
        for length in (100, 40)
        for percent in PERCENTS
    ]
    assert engine.asked == kinds * 6  # one round more, which is not counted
    assert len(told) == 6
    assert [(point.num_tokens, point.num_cached) for point in points] == kinds
    assert all(len(point.seconds) == 5 for point in points)


def test_errors_are_of_lengths_that_were_not_fitted():
    points = measure(TimedEngine(), lengths=(*LENGTHS, *HELD_OUT), num_rounds=5)
    found = fit_prefill(points, HELD_OUT, rungs=RUNGS, tp=1)
    assert {point.num_tokens for point in found.held_out} == set(HELD_OUT)
    assert {point.num_tokens for point in found.fitted} == set(LENGTHS)
    assert [each.cached_percent for each in found.errors] == list(PERCENTS)
    for each in found.errors:
        assert each.operators < 0.01 < each.architecture
        assert each.noise == 0
        assert each.linear > each.operators


def test_a_ladder_that_is_not_covered_is_refused():
    points = measure(TimedEngine(), lengths=(64, 128, 40), num_rounds=5)
    with pytest.raises(ConfigError, match=r"--lengths: no last step of 1 to 16 tokens, allowed:"):
        fit_prefill(points, (40,), rungs=RUNGS, tp=1)


def test_what_is_written_can_be_read_and_costs_the_same():
    points = measure(TimedEngine(), lengths=(*LENGTHS, *HELD_OUT), num_rounds=5)
    found = fit_prefill(points, HELD_OUT, rungs=RUNGS, tp=1)
    fetch = FetchFit(transport="tcp", fixed_s=1e-3, bytes_per_s=1e9, error=0.0)
    of = Fitted(model="tiny", dtype="float32", context_tokens=256)
    written = to_cost_file(found, fetch, Config(), of)
    read = parse_cost_file(to_values(written), source="here")
    assert read == written
    assert read.model == "tiny" and read.device == device_name()
    seconds = read.prefill_cost.prefill_s(150, 48)
    assert seconds == pytest.approx(TRUTH.prefill_s(150, 48), rel=0.02)
