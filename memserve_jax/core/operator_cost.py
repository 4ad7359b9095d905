"""The paper's operator-level cost model (section 5.3, table 5), for an engine that works in steps.

A prompt is computed in steps of at most a chunk of tokens, each padded to a rung of the engine's
ladder. Three kinds of operators make up a step:

- compute-bound (matrix products): what counts is the padded size, as the paper's waves do for
  its tiles. Every rung is a compiled program with a time of its own, so the model is a table.
- memory-bound (attention): tiles of queries, each over the keys it sees, which come in tiles too.
- constant: what a step, and what a prompt, costs however short it is.
"""

import bisect
import dataclasses
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memserve_jax.core.cost_model import PrefillWork, WorkColumns


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The memory-bound operators, all layers together: tiles of queries over tiles of keys."""

    query_tile_tokens: int  # queries that share the keys they load
    key_tile_tokens: int  # keys are loaded so many at a time
    s_per_key: float  # that a tile loads
    s_per_pair: float  # of a query in a tile and such a key

    def seconds(self, padded_tokens: int, chunks: Iterable[tuple[int, int]]) -> float:
        """Seconds of one step of `padded_tokens`; `chunks`: as of `OperatorCost.step_s`.

        Where a row has one new token its tile is that token alone.
        """
        tile, step = min(self.query_tile_tokens, padded_tokens), self.key_tile_tokens
        keys, single_keys = 0, 0
        for new, before in chunks:
            if new == 1:
                single_keys += int(_keys(1, step, before, 1))
            else:
                keys += int(_keys(tile, step, before, new))
        return keys * self.tile_s(tile) + single_keys * self.tile_s(1)

    def tile_s(self, num_queries: int) -> float:
        """Seconds of one key that a tile of so many queries loads."""
        return self.s_per_key + num_queries * self.s_per_pair


class _LastSteps(NamedTuple):
    """Of a prompt's last step, by its tokens; at 0, which is none, both are 0."""

    dense_s: NDArray[np.float64]  # all but attention
    missing_queries: NDArray[np.int64]  # of a whole tile


@dataclass(frozen=True, kw_only=True)
class OperatorCost:
    """A `PrefillCost` by operators, fitted on one device for one model and one ladder."""

    tp: int  # of the instance it was fitted on
    prompt_s: float  # constant, per prompt
    launch_s: float  # constant, per step
    rungs: tuple[int, ...]  # the ladder, ascending; the last is the chunk
    matmul_s: tuple[float, ...]  # compute-bound, per step of that rung
    attention: Attention

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a full step."""
        return self.rungs[-1]

    def step_s(self, num_tokens: int, chunks: Iterable[tuple[int, int]]) -> float:
        """Seconds of one step of the engine.

        Args:
          num_tokens: In all.
          chunks: Of each row: new tokens, and tokens before them.
        """
        rung = bisect.bisect_left(self.rungs, num_tokens)
        if rung < len(self.rungs):
            dense_s, padded = self.matmul_s[rung], self.rungs[rung]
        else:  # longer than any that was measured: more waves of the largest
            dense_s, padded = self.matmul_s[-1] * num_tokens / self.chunk_tokens, num_tokens
        return self.launch_s + dense_s + self.attention.seconds(padded, chunks)

    def prefill_s(self, num_tokens: int, num_cached: int) -> float:
        """Seconds to prefill the tokens after the first `num_cached`: `exec(x, y)`."""
        return float(self.prefill_s_each(num_tokens, np.array([num_cached], np.int64))[0])

    def prefill_s_each(self, num_tokens: int, num_cached: NDArray[np.int64]) -> NDArray[np.float64]:
        """`prefill_s` of one prompt where so much of it is held: over a column, for routing."""
        new = num_tokens - num_cached
        num_full, rest = np.divmod(new, self.chunk_tokens)
        dense_s = num_full * (self.launch_s + self.matmul_s[-1]) + self._last_steps.dense_s[rest]
        return self.prompt_s + dense_s + self._attention_s(num_cached, new, rest)

    def seconds(self, work: PrefillWork) -> float:
        """Seconds to do queued `work`: prompts share steps, which are then full."""
        tokens_s, pairs_s = self._queue_rates()
        return (
            work.prompts * self.prompt_s + work.new_tokens * tokens_s + work.token_pairs * pairs_s
        )

    def seconds_each(self, work: WorkColumns) -> NDArray[np.float64]:
        """Seconds to do the queued work of each row: `seconds` over columns, for routing."""
        tokens_s, pairs_s = self._queue_rates()
        return (
            work.prompts * self.prompt_s + work.new_tokens * tokens_s + work.token_pairs * pairs_s
        )

    def on(self, *, tokens_per_s: float, tp: int) -> "OperatorCost":
        """Returns the cost at another tensor parallelism: it only multiplies (paper section 5.3).

        Constants stay: they are the host's. The reported rate changes nothing, as it depends on
        the prompts that came.
        """
        del tokens_per_s
        if tp == self.tp:
            return self
        share = self.tp / tp
        attention = dataclasses.replace(
            self.attention,
            s_per_key=self.attention.s_per_key * share,
            s_per_pair=self.attention.s_per_pair * share,
        )
        matmul_s = tuple(seconds * share for seconds in self.matmul_s)
        return dataclasses.replace(self, tp=tp, matmul_s=matmul_s, attention=attention)

    @functools.cached_property
    def _last_steps(self) -> "_LastSteps":
        rests = range(self.chunk_tokens)
        rungs = [bisect.bisect_left(self.rungs, rest) for rest in rests]
        tile = min(self.attention.query_tile_tokens, self.chunk_tokens)
        dense_s = [self.launch_s + self.matmul_s[rung] for rung in rungs]
        queries = [
            min(tile, self.rungs[rung]) if rest > 1 else 1
            for rest, rung in zip(rests, rungs, strict=True)
        ]
        missing = [tile - each for each in queries]
        return _LastSteps(np.array([0.0, *dense_s[1:]]), np.array([0, *missing[1:]], np.int64))

    def _attention_s(
        self, before: NDArray[np.int64], new: NDArray[np.int64], rest: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Attention of whole prompts, taking chunks for whole tiles.

        A last step smaller than a tile has a smaller one, alone: of one query if it is one token.
        """
        attention = self.attention
        tile, step = min(attention.query_tile_tokens, self.chunk_tokens), attention.key_tile_tokens
        keys = _keys(tile, step, before, new)
        last_keys = -(-(before + new) // step) * step
        missing_pairs = last_keys * self._last_steps.missing_queries[rest]
        return keys * attention.tile_s(tile) - missing_pairs * attention.s_per_pair

    def _queue_rates(self) -> tuple[float, float]:
        """Returns the seconds of a token, and of a pair of tokens, in full steps.

        A tile loads the keys up to its last query, and the rest of the last tile of keys: half a
        tile each way more than its queries see, on average.
        """
        tile = min(self.attention.query_tile_tokens, self.chunk_tokens)
        key_s = self.attention.s_per_key + tile * self.attention.s_per_pair
        beyond = (tile + self.attention.key_tile_tokens) / 2 - 1
        token_s = (self.launch_s + self.matmul_s[-1]) / self.chunk_tokens + key_s * beyond / tile
        return token_s, key_s / tile


def _keys(tile: int, step: int, before: Any, new: Any) -> Any:
    """Returns the keys that the tiles of `new` queries after `before` load, numbers or columns.

    The j-th tile of `tile` queries loads the keys up to its end, ceil((before + j tile) / step)
    times `step`, the last one those up to the last query. Summed without going through the tiles:
    they repeat every `period`.
    """
    num_whole = (new - 1) // tile  # tiles before the last
    period = step // math.gcd(step, tile)
    turns = 0
    for first in range(1, period + 1):
        count = (num_whole - first) // period + 1  # 0 where there are fewer
        turns += count * ((before + first * tile + step - 1) // step)
        turns += tile * period // step * (count * (count - 1) // 2)
    return (turns + -(-(before + new) // step)) * step
