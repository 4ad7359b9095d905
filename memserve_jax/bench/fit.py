"""`memserve bench fit`: the cost model of one device and model (paper section 5.3, figure 14).

Prefills are timed in the engine that serves, one at a time, in rounds of all lengths, half of
which are only predicted, never fitted: what is reported of errors is of those.
"""

import datetime
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from memserve_jax.bench.fit_fetch import FetchFit
from memserve_jax.bench.fit_solve import Point, Predict, fit_architecture, fit_operators, mean_error
from memserve_jax.core.config import Config
from memserve_jax.core.cost_file import CostFile, parse_cost_file
from memserve_jax.core.cost_model import CostModel
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.operator_cost import OperatorCost

FITTED = (12, 24, 48, 96, 160, 224, 320, 448, 512, 640, 832, 1024, 1280, 1536, 2048)
HELD_OUT = (40, 72, 130, 200, 288, 400, 600, 700, 900, 1150, 1400, 1800)
PERCENTS = (0, 25, 50)  # cached: the paper's
PAPER_OPERATORS = {0: 4.9, 25: 4.7, 50: 4.9}  # mean error in per cent, TP=2 on an H800
PAPER_ARCHITECTURE = {0: 18.0, 25: 20.1, 50: 18.5}

Progress = Callable[[int, int, str], None]  # done, total, what


@runtime_checkable
class Prefills(Protocol):
    """What is timed: `FitEngine`."""

    @property
    def rungs(self) -> tuple[int, ...]:
        """The engine's ladder."""
        ...

    def held_tokens(self, num_tokens: int, percent: int) -> int:
        """Returns how much of a prompt is cached where `percent` is asked for."""
        ...

    def prefill_s(self, num_tokens: int, num_held: int) -> float:
        """Returns the seconds of one prefill."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Mean relative errors of predictions, on held-out lengths, at one cached share."""

    cached_percent: int
    operators: float
    architecture: float
    linear: float  # what serves before a fit: s_per_token of the rate, nothing per pair
    noise: float  # by how much two halves of the rounds disagree


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFit:
    """What was found."""

    cost: OperatorCost
    errors: tuple[Errors, ...]
    fitted: tuple[Point, ...]
    held_out: tuple[Point, ...]


def measure(
    engine: Prefills,
    *,
    lengths: Sequence[int],
    num_rounds: int,
    progress: Progress | None = None,
) -> list[Point]:
    """Returns a point per length and cached share; one round more is played first."""
    kinds = [(length, percent) for length in lengths for percent in PERCENTS]
    held = {kind: engine.held_tokens(*kind) for kind in kinds}
    times: dict[tuple[int, int], list[float]] = {kind: [] for kind in kinds}
    for round_ in range(num_rounds + 1):
        if progress:
            progress(round_, num_rounds + 1, f"round {round_} of {num_rounds}")
        for kind in kinds:
            seconds = engine.prefill_s(kind[0], held[kind])
            if round_:
                times[kind].append(seconds)
    return [
        Point(
            num_tokens=length,
            num_cached=held[length, percent],
            cached_percent=percent,
            seconds=tuple(times[length, percent]),
        )
        for length, percent in kinds
    ]


def fit_prefill(
    points: Sequence[Point], held_out: Sequence[int], *, rungs: tuple[int, ...], tp: int
) -> PrefillFit:
    """Returns the fit to all points but those of the lengths `held_out`, and its errors on them.

    Raises:
      ConfigError: a step of the ladder occurs in no prompt that is fitted.
    """
    fitted = [point for point in points if point.num_tokens not in held_out]
    others = [point for point in points if point.num_tokens in held_out]
    _check_ladder(fitted, rungs)
    cost = fit_operators(fitted, rungs=rungs, tp=tp)
    architecture, linear = fit_architecture(fitted), _linear(fitted).prefill_s
    return PrefillFit(
        cost=cost,
        errors=tuple(
            _errors(percent, others, (cost.prefill_s, architecture, linear)) for percent in PERCENTS
        ),
        fitted=tuple(fitted),
        held_out=tuple(others),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What was fitted."""

    model: str
    dtype: str
    context_tokens: int


def to_cost_file(fit: PrefillFit, fetch: FetchFit, config: Config, of: Fitted) -> CostFile:
    """Returns what is written: the fit, of what and on what."""
    attention = fit.cost.attention
    values = {
        "fitted": datetime.date.today().isoformat(),
        "device": device_name(),
        "model": of.model,
        "versions": {
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "engine": {
            "chunk_tokens": config.engine.chunk_tokens,
            "max_running": config.engine.max_running,
            "max_context_tokens": of.context_tokens,
            "block_size_tokens": config.mempool.block_size_tokens,
            "dtype": of.dtype,
            "tp": config.tp,
        },
        "prefill": {
            "prompt_s": _short(fit.cost.prompt_s),
            "launch_s": _short(fit.cost.launch_s),
            "matmul_s": {
                rung: _short(seconds)
                for rung, seconds in zip(fit.cost.rungs, fit.cost.matmul_s, strict=True)
            },
            "attention": {
                "query_tile_tokens": attention.query_tile_tokens,
                "key_tile_tokens": attention.key_tile_tokens,
                "s_per_key": _short(attention.s_per_key),
                "s_per_pair": _short(attention.s_per_pair),
            },
        },
        "fetch": {
            "transport": fetch.transport,
            "fixed_s": _short(fetch.fixed_s),
            "bytes_per_s": _short(fetch.bytes_per_s),
        },
        "error_percent": {
            f"cached_{each.cached_percent}": round(100 * each.operators, 1) for each in fit.errors
        },
    }
    return parse_cost_file(values, source="bench fit")


def device_name() -> str:
    """Returns what the first device is called; of the CPU, its kind and its cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"cpu, {platform.machine()}"


def _errors(percent: int, points: Sequence[Point], predictions: tuple[Predict, ...]) -> Errors:
    here = [point for point in points if point.cached_percent == percent]
    operators, architecture, linear = (mean_error(predict, here) for predict in predictions)
    return Errors(
        cached_percent=percent,
        operators=operators,
        architecture=architecture,
        linear=linear,
        noise=statistics.mean(point.halves_differ for point in here),
    )


def _linear(points: Sequence[Point]) -> CostModel:
    """Returns the cost that stands in for a fit, at the rate of these very prompts."""
    num_tokens = sum(point.num_tokens - point.num_cached for point in points)
    rate = num_tokens / sum(point.median_s for point in points)
    return CostModel(fixed_s=5e-3, s_per_token=1e-4, s_per_token_pair=0.0).at_rate(rate)


def _check_ladder(points: Sequence[Point], rungs: tuple[int, ...]) -> None:
    rests = {(point.num_tokens - point.num_cached) % rungs[-1] for point in points}
    for below, rung in zip((0, *rungs), rungs[:-1], strict=False):
        if not any(below < rest <= rung for rest in rests):
            raise ConfigError(
                f"--lengths: no last step of {below + 1} to {rung} tokens, allowed: lengths with "
                f"one in each rung of {', '.join(str(each) for each in rungs)}"
            )


def _short(value: float) -> float:
    return float(f"{value:.4g}")
