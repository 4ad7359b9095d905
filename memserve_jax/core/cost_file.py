"""A fitted cost as a YAML file: `memserve bench fit` writes it, `scheduler.cost.path` names it."""

import dataclasses
import logging
import pathlib
import typing
from collections.abc import Mapping

import pydantic
import yaml
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from memserve_jax.core.config import Config, CostSection
from memserve_jax.core.cost_model import CostModel, FetchCost, PrefillCost
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.operator_cost import Attention, OperatorCost

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_Seconds = typing.Annotated[float, Field(ge=0)]
_Tokens = typing.Annotated[int, Field(ge=1)]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FittedEngine:
    """The engine that was measured: a cost holds for engines like it."""

    chunk_tokens: _Tokens
    max_running: _Tokens
    max_context_tokens: _Tokens
    block_size_tokens: _Tokens
    dtype: str
    tp: _Tokens


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FittedAttention:
    """The memory-bound operators."""

    query_tile_tokens: _Tokens
    key_tile_tokens: _Tokens
    s_per_key: _Seconds
    s_per_pair: _Seconds


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FittedPrefill:
    """The coefficients of an `OperatorCost`."""

    prompt_s: _Seconds
    launch_s: _Seconds
    matmul_s: dict[_Tokens, _Seconds] = Field(min_length=1)  # by the rung, tokens of a step
    attention: FittedAttention


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FittedFetch:
    """What it takes to bring KV from a peer."""

    transport: str
    fixed_s: _Seconds
    bytes_per_s: float = Field(gt=0)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CostFile:
    """One fit: of what, where, with which result."""

    fitted: str  # the day
    device: str
    model: str
    versions: dict[str, str]
    engine: FittedEngine
    prefill: FittedPrefill
    fetch: FittedFetch
    error_percent: dict[str, float] = Field(default_factory=dict)  # on lengths not fitted

    @property
    def prefill_cost(self) -> OperatorCost:
        """What a prefill costs."""
        matmul = sorted(self.prefill.matmul_s.items())
        return OperatorCost(
            tp=self.engine.tp,
            prompt_s=self.prefill.prompt_s,
            launch_s=self.prefill.launch_s,
            rungs=tuple(rung for rung, _ in matmul),
            matmul_s=tuple(seconds for _, seconds in matmul),
            attention=Attention(**dataclasses.asdict(self.prefill.attention)),
        )

    def differences(self, config: Config) -> list[str]:
        """Returns where the engines of `config` are not like the one that was measured."""
        engine, fitted = config.engine, self.engine
        dtype = config.model.dtype or fitted.dtype
        pairs = {
            "engine.chunk_tokens": (engine.chunk_tokens, fitted.chunk_tokens),
            "engine.max_running": (engine.max_running, fitted.max_running),
            "mempool.block_size_tokens": (
                config.mempool.block_size_tokens,
                fitted.block_size_tokens,
            ),
            "model.dtype": (dtype, fitted.dtype),
        }
        return [
            f"{key} is {here}, fitted with {there}"
            for key, (here, there) in pairs.items()
            if here != there
        ]


def read_cost_file(path: str) -> CostFile:
    """Returns the fit in the file `path`.

    Raises:
      ConfigError: it cannot be read, or is no such file; names the key.
    """
    try:
        values = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"scheduler.cost.path: {path}: cannot read: {reason}") from None
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"scheduler.cost.path: {path}: not YAML: {text}") from None
    return parse_cost_file(values, source=f"scheduler.cost.path: {path}")


def parse_cost_file(values: object, *, source: str) -> CostFile:
    """Returns the fit that `values` describe.

    Raises:
      ConfigError: a key is unknown, absent or wrong; the message starts with `source`.
    """
    try:
        return pydantic.TypeAdapter(CostFile).validate_python(values)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise ConfigError(
            f"{source}: {key}: got {problem['input']!r}, allowed: {problem['msg']}"
        ) from None


def to_values(fit: CostFile) -> Mapping[str, object]:
    """Returns `fit` as `parse_cost_file` takes it."""
    return pydantic.TypeAdapter(CostFile).dump_python(fit)


def prefill_cost_of(section: CostSection) -> PrefillCost:
    """Returns what a prefill costs by the config: as fitted, else linear.

    Raises:
      ConfigError: as `read_cost_file`.
    """
    if section.path is not None:
        return read_cost_file(section.path).prefill_cost
    return CostModel(
        fixed_s=section.fixed_s,
        s_per_token=section.s_per_token,
        s_per_token_pair=section.s_per_token_pair,
    )


def fetch_cost_of(section: CostSection) -> FetchCost:
    """Returns what decides eq. 2 by the config. Raises as `prefill_cost_of`."""
    if section.path is not None:
        fit = read_cost_file(section.path)
        return FetchCost(
            prefill=fit.prefill_cost,
            fixed_s=fit.fetch.fixed_s,
            bytes_per_s=fit.fetch.bytes_per_s,
        )
    return FetchCost(
        prefill=prefill_cost_of(section),
        fixed_s=section.fetch_fixed_s,
        bytes_per_s=section.fetch_bytes_per_s,
    )


def log_differences(config: Config) -> None:
    """Warns where the fit that `config` names is of other engines than its own."""
    path = config.scheduler.cost.path
    if path is None:
        return
    fit = read_cost_file(path)
    _log.info("prefill cost: %s: %s on %s, %s", path, fit.model, fit.device, fit.fitted)
    for difference in fit.differences(config):
        _log.warning("prefill cost: %s: %s: predictions will be off", path, difference)
