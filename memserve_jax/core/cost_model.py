"""Seconds a prefill takes, and the work that makes them up (paper section 5.3).

On floor 0 because two processes ask: the scheduler to route (eq. 1), a prefill instance to
choose between fetching a prefix and computing it again (eq. 2).
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillWork:
    """What some prompts still cost, in whole numbers: equal work compares equal, in any order."""

    prompts: int = 0
    new_tokens: int = 0  # to be computed
    token_pairs: int = 0  # (new token, token it attends to) pairs

    @classmethod
    def of(cls, num_tokens: int, num_cached: int) -> "PrefillWork":
        """Returns the work of one prompt of `num_tokens`, the first `num_cached` of them held."""
        new = num_tokens - num_cached
        return cls(prompts=1, new_tokens=new, token_pairs=new * num_cached + new * (new + 1) // 2)

    def __add__(self, other: "PrefillWork") -> "PrefillWork":
        return PrefillWork(
            prompts=self.prompts + other.prompts,
            new_tokens=self.new_tokens + other.new_tokens,
            token_pairs=self.token_pairs + other.token_pairs,
        )

    def __sub__(self, other: "PrefillWork") -> "PrefillWork":
        return PrefillWork(
            prompts=self.prompts - other.prompts,
            new_tokens=self.new_tokens - other.new_tokens,
            token_pairs=self.token_pairs - other.token_pairs,
        )


class WorkColumns(NamedTuple):
    """The work of several instances, one row each: `PrefillWork` in columns, all int64."""

    prompts: NDArray[np.int64]
    new_tokens: NDArray[np.int64]
    token_pairs: NDArray[np.int64]

    def with_prompt(self, num_tokens: int, num_cached: NDArray[np.int64]) -> "WorkColumns":
        """Returns the rows, each with a prompt of `num_tokens` more, so many of them held."""
        new = num_tokens - num_cached
        return WorkColumns(
            self.prompts + 1,
            self.new_tokens + new,
            self.token_pairs + new * num_cached + new * (new + 1) // 2,
        )

    def at(self, rows: NDArray[np.intp]) -> "WorkColumns":
        """Returns some of the rows."""
        return WorkColumns(self.prompts[rows], self.new_tokens[rows], self.token_pairs[rows])


@runtime_checkable
class PrefillCost(Protocol):
    """What prefills cost on one kind of instance: eq. 1 is `seconds` + `prefill_s`.

    The two differ where a cost is not linear: a queue's prompts share the steps of the engine, one
    prompt has steps of its own.
    """

    def seconds(self, work: PrefillWork) -> float:
        """Seconds to do queued `work`."""
        ...

    def seconds_each(self, work: WorkColumns) -> NDArray[np.float64]:
        """Seconds to do the queued work of each row: `seconds` over columns, for routing."""
        ...

    def prefill_s(self, num_tokens: int, num_cached: int) -> float:
        """Seconds to prefill the tokens after the first `num_cached`: `exec(x, y)`."""
        ...

    def prefill_s_each(self, num_tokens: int, num_cached: NDArray[np.int64]) -> NDArray[np.float64]:
        """`prefill_s` of one prompt where so much of it is held: over a column, for routing."""
        ...

    def step_s(self, num_tokens: int, chunks: Iterable[tuple[int, int]]) -> float:
        """Seconds of one step of the engine.

        Args:
          num_tokens: In all.
          chunks: Of each row: new tokens, and tokens before them.
        """
        ...

    def on(self, *, tokens_per_s: float, tp: int) -> "PrefillCost":
        """Returns the cost on an instance of tensor parallelism `tp`.

        Args:
          tokens_per_s: The prefill rate it reports; 0: none yet.
          tp: Devices.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """The paper's `exec`, linear: projections cost per new token, attention per token pair.

    Linear in the work, so the sum over a queue is the cost of the summed work.
    """

    fixed_s: float  # per prompt
    s_per_token: float
    s_per_token_pair: float

    def seconds(self, work: PrefillWork) -> float:
        """Seconds to do `work`."""
        return (
            work.prompts * self.fixed_s
            + work.new_tokens * self.s_per_token
            + work.token_pairs * self.s_per_token_pair
        )

    def seconds_each(self, work: WorkColumns) -> NDArray[np.float64]:
        """Seconds to do the work of each row: `seconds` over columns, for routing."""
        return (
            work.prompts * self.fixed_s
            + work.new_tokens * self.s_per_token
            + work.token_pairs * self.s_per_token_pair
        )

    def prefill_s(self, num_tokens: int, num_cached: int) -> float:
        """Seconds to prefill the tokens after the first `num_cached`: `exec(x, y)`."""
        return self.seconds(PrefillWork.of(num_tokens, num_cached))

    def prefill_s_each(self, num_tokens: int, num_cached: NDArray[np.int64]) -> NDArray[np.float64]:
        """`prefill_s` of one prompt where so much of it is held: over a column, for routing."""
        new = num_tokens - num_cached
        pairs = new * num_cached + new * (new + 1) // 2
        return self.fixed_s + new * self.s_per_token + pairs * self.s_per_token_pair

    def step_s(self, num_tokens: int, chunks: Iterable[tuple[int, int]]) -> float:
        """Seconds of one step of the engine: of its tokens and pairs, without `fixed_s`."""
        pairs = sum(PrefillWork.of(before + new, before).token_pairs for new, before in chunks)
        return num_tokens * self.s_per_token + pairs * self.s_per_token_pair

    def on(self, *, tokens_per_s: float, tp: int) -> "CostModel":
        """Returns this model at the rate that an instance reports; as it is before there is one."""
        del tp  # the rate says it
        return self.at_rate(tokens_per_s) if tokens_per_s > 0 else self

    def at_rate(self, tokens_per_s: float) -> "CostModel":
        """Returns this model stretched to an instance that prefills `tokens_per_s` (> 0).

        What stands in for a fit: the rate gives the cost of a token, and the other terms keep
        their share.
        """
        if self.s_per_token == 0:
            return dataclasses.replace(self, s_per_token=1 / tokens_per_s)
        stretch = 1 / (tokens_per_s * self.s_per_token)
        return CostModel(
            fixed_s=self.fixed_s * stretch,
            s_per_token=1 / tokens_per_s,
            s_per_token_pair=self.s_per_token_pair * stretch,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOffer:
    """A prefix that a peer holds beyond what the instance that prefills does."""

    num_tokens: int  # of the prompt
    num_held: int  # of them held here
    num_offered: int  # held there, from position 0
    num_blocks: int  # of KV between the two
    num_bytes: int  # of them


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchCost:
    """The paper's eq. 2: fetch if exec(x, y') + transfer < exec(x, y)."""

    prefill: PrefillCost
    fixed_s: float = 5e-3  # a reservation, a round trip, a commit
    bytes_per_s: float = 1e9

    def predicted_s(self, num_bytes: int) -> float:
        """Seconds until so much fetched KV is usable."""
        return self.fixed_s + num_bytes / self.bytes_per_s

    def saved_s(self, offer: FetchOffer) -> float:
        """Seconds of prefill that fetching spares, before what it costs."""
        cold = self.prefill.prefill_s(offer.num_tokens, offer.num_held)
        return cold - self.prefill.prefill_s(offer.num_tokens, offer.num_offered)

    def pays(self, offer: FetchOffer) -> bool:
        """Whether fetching is quicker than computing."""
        return self.predicted_s(offer.num_bytes) < self.saved_s(offer)

    def on(self, *, tokens_per_s: float, tp: int) -> "FetchCost":
        """Returns the cost on an instance: see `PrefillCost.on`."""
        return dataclasses.replace(self, prefill=self.prefill.on(tokens_per_s=tokens_per_s, tp=tp))
