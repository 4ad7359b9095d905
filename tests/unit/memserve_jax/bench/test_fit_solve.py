"""Costs are found again from the times that they give."""

import dataclasses

import numpy as np
import pytest

from memserve_jax.bench.fit_solve import (
    Point,
    fit_architecture,
    fit_operators,
    mean_error,
)
from memserve_jax.core.operator_cost import Attention, OperatorCost

RUNGS = (16, 32, 64, 128, 256, 512)
TRUTH = OperatorCost(
    tp=1,
    prompt_s=2e-3,
    launch_s=4e-3,
    rungs=RUNGS,
    matmul_s=(1.6e-3, 3.2e-3, 9e-3, 16e-3, 32e-3, 64e-3),
    attention=Attention(
        query_tile_tokens=128, key_tile_tokens=256, s_per_key=2e-6, s_per_pair=5e-8
    ),
)


def times(lengths, cost=TRUTH, noise=0.0, rounds=6) -> list[Point]:
    random = np.random.default_rng(0)
    points = []
    for length in lengths:
        for percent in (0, 25, 50):
            cached = length * percent // 100 // 16 * 16
            seconds = cost.prefill_s(length, cached)
            drawn = seconds * (1 + noise * random.standard_normal(rounds))
            points.append(
                Point(
                    num_tokens=length,
                    num_cached=cached,
                    cached_percent=percent,
                    seconds=tuple(drawn.tolist()),
                )
            )
    return points


FITTED = (12, 24, 48, 96, 160, 224, 320, 448, 512, 640, 1024, 1536, 2048)
HELD_OUT = (72, 130, 288, 600, 900, 1400, 1800)


def test_times_without_noise_are_predicted_exactly():
    cost = fit_operators(times(FITTED), rungs=RUNGS, tp=1)
    assert mean_error(cost.prefill_s, times(HELD_OUT)) < 1e-3
    assert cost.attention.query_tile_tokens == 128
    step_s = cost.launch_s + cost.matmul_s[-1]
    assert step_s == pytest.approx(TRUTH.launch_s + TRUTH.matmul_s[-1], rel=0.01)


def test_with_noise_the_operators_come_nearer_than_the_architecture():
    points, held_out = times(FITTED, noise=0.05), times(HELD_OUT)
    cost = fit_operators(points, rungs=RUNGS, tp=2)
    assert cost.tp == 2
    assert mean_error(cost.prefill_s, held_out) < 0.04
    assert mean_error(fit_architecture(points), held_out) > 0.08  # padding makes steps


def test_no_coefficient_is_negative_and_no_rung_cheaper_than_a_smaller_one():
    odd = dataclasses.replace(TRUTH, prompt_s=0.0, matmul_s=(5e-3, 4e-3, 3e-3, 2e-3, 1e-3, 9e-3))
    cost = fit_operators(times(FITTED, odd, noise=0.1), rungs=RUNGS, tp=1)
    assert list(cost.matmul_s) == sorted(cost.matmul_s)
    attention = cost.attention
    coefficients = (cost.prompt_s, cost.launch_s, attention.s_per_key, attention.s_per_pair)
    assert min(coefficients) >= 0
    assert cost.matmul_s[0] + cost.launch_s >= 0


def test_the_error_and_the_noise_are_relative():
    point = Point(num_tokens=10, num_cached=0, cached_percent=0, seconds=(1.0, 2.0, 1.0, 2.0, 1.0))
    assert point.median_s == 1.0
    assert point.halves_differ == 1.0
    assert mean_error(lambda num_tokens, num_cached: 1.5, [point]) == 0.5
