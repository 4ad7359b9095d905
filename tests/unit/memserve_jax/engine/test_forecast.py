"""Decisions by eq. 2, each counted beside what it predicted and what came."""

import pytest

from memserve_jax.core.cost_model import CostModel, FetchCost, FetchOffer
from memserve_jax.engine.forecast import Forecast

COST = FetchCost(
    prefill=CostModel(fixed_s=0.0, s_per_token=1e-3, s_per_token_pair=0.0),
    fixed_s=0.01,
    bytes_per_s=1e6,
)


def offer(num_bytes: int) -> FetchOffer:
    """80 tokens are on offer: 0.08 s of prefill."""
    return FetchOffer(
        num_tokens=100, num_held=16, num_offered=96, num_blocks=5, num_bytes=num_bytes
    )


def test_a_fetch_is_chosen_where_it_is_quicker_and_either_way_counted():
    forecast = Forecast(COST, rule="cost")
    assert forecast.fetches(offer(60_000))
    assert not forecast.fetches(offer(80_000))
    totals = forecast.totals
    assert (totals.kv_fetches_chosen, totals.kv_fetches_declined) == (1, 1)
    assert totals.kv_fetch_saved_s == pytest.approx(0.08)


def test_before_a_fit_the_measured_rate_decides():
    forecast = Forecast(COST, rule="cost")
    assert not forecast.fetches(offer(80_000))
    forecast.measured(500.0)  # tokens/s: computing takes twice as long
    assert forecast.fetches(offer(80_000))


def test_always_and_never_are_just_that():
    always, never = Forecast(COST, rule="always"), Forecast(COST)
    assert always.fetches(offer(10**9))
    assert not never.fetches(offer(0))
    assert always.totals.kv_fetches_chosen == 1
    assert never.totals.kv_fetches_declined == 0


def test_predictions_stand_beside_what_was_measured():
    forecast = Forecast(COST, rule="always")
    forecast.fetched(60_000, 0.05)
    assert forecast.totals.kv_fetch_predicted_s == pytest.approx(0.07)
    assert forecast.totals.kv_fetch_actual_s == pytest.approx(0.05)
    predicted_s = forecast.step_s(32, [(32, 0)])
    assert predicted_s == pytest.approx(0.032)
    forecast.stepped(predicted_s, 0.03)
    assert forecast.totals.prefill_predicted_s == pytest.approx(0.032)
    assert forecast.totals.prefill_actual_s == pytest.approx(0.03)
