"""What the cost model says beforehand, beside what it then took.

Every fetch that eq. 2 decides on, and every step that computes a prompt, is predicted with the
very model that decides, and counted: whoever doubts a decision can look at how well it predicts.
"""

import typing
from collections.abc import Iterable
from dataclasses import dataclass

from memserve_jax.core.cost_model import CostModel, FetchCost, FetchOffer

FetchRule = typing.Literal["cost", "always", "never"]

UNFITTED = FetchCost(prefill=CostModel(fixed_s=5e-3, s_per_token=1e-4, s_per_token_pair=0.0))


@dataclass(slots=True)
class Foretold:
    """Totals since the start; fields of `Counters`."""

    prefill_predicted_s: float = 0.0  # of steps that computed prompts
    prefill_actual_s: float = 0.0
    kv_fetches_chosen: int = 0
    kv_fetches_declined: int = 0  # computing was predicted to be quicker
    kv_fetch_predicted_s: float = 0.0  # of fetches that came
    kv_fetch_actual_s: float = 0.0
    kv_fetch_saved_s: float = 0.0  # of prefill, as predicted, by the fetches chosen


class Forecast:
    """Decides on fetches and keeps account. The engine's thread owns it."""

    def __init__(self, cost: FetchCost = UNFITTED, *, rule: FetchRule = "never", tp: int = 1):
        """Has predicted nothing.

        Args:
          cost: Of prefills and fetches.
          rule: Whether peers' KV is fetched: where it is quicker, always, never.
          tp: Tensor parallelism of the instance.
        """
        self._cost = cost
        self._rule: FetchRule = rule
        self._tp = tp
        self._tokens_per_s = 0.0
        self.totals = Foretold()

    def measured(self, tokens_per_s: float) -> None:
        """Notes the instance's prefill rate: an unfitted cost goes by it."""
        self._tokens_per_s = tokens_per_s

    def fetches(self, offer: FetchOffer) -> bool:
        """Decides whether a peer's KV is fetched (paper eq. 2), and counts the decision."""
        if self._rule == "never":
            return False
        cost = self._cost.on(tokens_per_s=self._tokens_per_s, tp=self._tp)
        saved_s = cost.saved_s(offer)
        if self._rule == "cost" and cost.predicted_s(offer.num_bytes) >= saved_s:
            self.totals.kv_fetches_declined += 1
            return False
        self.totals.kv_fetches_chosen += 1
        self.totals.kv_fetch_saved_s += saved_s
        return True

    def fetched(self, num_bytes: int, seconds: float) -> None:
        """Takes account of a fetch that has come: so many bytes in so many seconds."""
        self.totals.kv_fetch_predicted_s += self._cost.predicted_s(num_bytes)
        self.totals.kv_fetch_actual_s += seconds

    def step_s(self, num_tokens: int, chunks: Iterable[tuple[int, int]]) -> float:
        """Returns the seconds that a step is predicted to take.

        Args:
          num_tokens: In all.
          chunks: Of each row: new tokens, and tokens before them.
        """
        cost = self._cost.on(tokens_per_s=self._tokens_per_s, tp=self._tp)
        return cost.prefill.step_s(num_tokens, chunks)

    def stepped(self, predicted_s: float, actual_s: float) -> None:
        """Takes account of a step that computed prompts."""
        self.totals.prefill_predicted_s += predicted_s
        self.totals.prefill_actual_s += actual_s
