"""From times to costs: by operators (paper table 5), and by the whole architecture beside it.

Both are fitted to the same times, with relative weights: a tenth of a short prompt's time counts
as much as a tenth of a long one's.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from memserve_jax.core.operator_cost import Attention, OperatorCost

# (queries, keys) of an attention tile; the one that fits best is taken.
TILES = ((1, 1), (16, 16), (64, 64), (128, 128), (128, 256))

Predict = Callable[[int, int], float]  # tokens of a prompt, tokens cached -> seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One kind of prompt, and what its prefill took."""

    num_tokens: int
    num_cached: int
    cached_percent: int  # as asked for
    seconds: tuple[float, ...]  # a round each

    @property
    def median_s(self) -> float:
        """Of the rounds."""
        return float(np.median(self.seconds))

    @property
    def halves_differ(self) -> float:
        """By how much two halves of the rounds disagree about the median, relatively."""
        evens, odds = np.median(self.seconds[::2]), np.median(self.seconds[1::2])
        return float(abs(evens - odds)) / self.median_s


def fit_operators(points: Sequence[Point], *, rungs: tuple[int, ...], tp: int) -> OperatorCost:
    """Returns the cost by operators that fits `points` best.

    No coefficient is negative, and no larger step costs less than a smaller one.

    Args:
      points: Each rung must occur.
      rungs: The engine's ladder.
      tp: The engine's tensor parallelism.
    """
    fits = [_fit_tiles(points, rungs, tp, tiles) for tiles in TILES]
    return min(fits, key=lambda cost: mean_error(cost.prefill_s, points))


def fit_architecture(points: Sequence[Point]) -> Predict:
    """Returns a prediction from length x and cached ratio y alone: 1, x, xy, x^2, x^2 y."""
    rows = [_polynomial(point.num_tokens, point.num_cached) for point in points]
    weights = np.array([1 / point.median_s for point in points])
    design = np.array(rows) * weights[:, None]
    solution, *_ = np.linalg.lstsq(design, np.ones(len(points)), rcond=None)

    def predict(num_tokens: int, num_cached: int) -> float:
        return float(np.array(_polynomial(num_tokens, num_cached)) @ solution)

    return predict


def mean_error(predict: Predict, points: Iterable[Point]) -> float:
    """Returns how far predictions are from the medians, relatively, on average."""
    errors = [
        abs(predict(point.num_tokens, point.num_cached) / point.median_s - 1) for point in points
    ]
    return float(np.mean(errors))


def _polynomial(num_tokens: int, num_cached: int) -> list[float]:
    x, y = float(num_tokens), num_cached / num_tokens
    return [1.0, x, x * y, x * x, x * x * y]


def _fit_tiles(
    points: Sequence[Point], rungs: tuple[int, ...], tp: int, tiles: tuple[int, int]
) -> OperatorCost:
    names = ("prompt", *rungs, "key", "pair")
    columns = [_counts(point, rungs, tiles) for point in points]
    weights = np.array([1 / point.median_s for point in points])
    design = np.array([[counts[name] for name in names] for counts in columns]) * weights[:, None]
    solution = _solve(design, len(rungs))
    steps_s = np.cumsum(solution[1 : 1 + len(rungs)])
    launch_s = _launch_s(rungs, steps_s)
    return OperatorCost(
        tp=tp,
        prompt_s=float(solution[0]),
        launch_s=launch_s,
        rungs=rungs,
        matmul_s=tuple(float(seconds - launch_s) for seconds in steps_s),
        attention=Attention(
            query_tile_tokens=tiles[0],
            key_tile_tokens=tiles[1],
            s_per_key=float(solution[-2]),
            s_per_pair=float(solution[-1]),
        ),
    )


def _solve(design: NDArray[np.float64], num_rungs: int) -> NDArray[np.float64]:
    """Returns coefficients >= 0: of a rung, what it costs more than the one below."""
    summed = design.copy()
    for rung in range(num_rungs - 1, 0, -1):  # a step of a rung pays all increments up to it
        summed[:, rung] += summed[:, rung + 1]
    # Columns differ by many powers of ten: each is solved for in a unit of its own size.
    units = np.linalg.norm(summed, axis=0)
    units[units == 0] = 1.0
    solution, _ = nnls(summed / units, np.ones(len(summed)))
    return solution / units


def _counts(point: Point, rungs: tuple[int, ...], tiles: tuple[int, int]) -> dict[str | int, float]:
    """Returns how often each thing happens in a prefill that the coefficients are of."""
    keys, pairs = (
        _attention_alone(rungs, tiles, key_s, pair_s).prefill_s(point.num_tokens, point.num_cached)
        for key_s, pair_s in ((1.0, 0.0), (0.0, 1.0))
    )
    counts: dict[str | int, float] = dict.fromkeys(rungs, 0.0)
    num_full, rest = divmod(point.num_tokens - point.num_cached, rungs[-1])
    counts[rungs[-1]] += num_full
    if rest:
        counts[min(rung for rung in rungs if rung >= rest)] += 1
    return counts | {"prompt": 1.0, "key": keys, "pair": pairs}


def _attention_alone(
    rungs: tuple[int, ...], tiles: tuple[int, int], key_s: float, pair_s: float
) -> OperatorCost:
    return OperatorCost(
        tp=1,
        prompt_s=0.0,
        launch_s=0.0,
        rungs=rungs,
        matmul_s=(0.0,) * len(rungs),
        attention=Attention(
            query_tile_tokens=tiles[0],
            key_tile_tokens=tiles[1],
            s_per_key=key_s,
            s_per_pair=pair_s,
        ),
    )


def _launch_s(rungs: tuple[int, ...], steps_s: NDArray[np.float64]) -> float:
    """Returns what a step costs at no tokens, if its rate is that between the last two rungs."""
    if len(rungs) < 2:
        return 0.0
    rate = (steps_s[-1] - steps_s[-2]) / (rungs[-1] - rungs[-2])
    return float(max(0.0, steps_s[0] - rate * rungs[0]))
