"""Rope settings of a checkpoint, in both of Hugging Face's spellings."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from memserve_jax.core.errors import CheckpointError

DEFAULT_THETA = 10_000.0


class RopeKind(enum.StrEnum):
    """How frequencies are stretched for contexts longer than the pretrained one."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding of one model. What a kind does not use keeps its default."""

    theta: float
    kind: RopeKind = RopeKind.DEFAULT
    factor: float = 1.0
    original_context_tokens: int = 0  # of the pretraining: llama3, yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncates: bool = True  # yarn: round the ramp's ends to whole dimensions
    attention_factor: float | None = None  # yarn; None: from factor and the mscales
    mscale: float = 0.0  # yarn
    mscale_all_dim: float = 0.0  # yarn


def parse_rope(config: Mapping[str, object], *, source: str) -> RopeConfig:
    """Returns the rope settings of a parsed `config.json`.

    They are either `rope_theta` with `rope_scaling` beside it, or both in one flat
    `rope_parameters`.

    Args:
      config: The whole `config.json`.
      source: Its name, for messages.

    Raises:
      CheckpointError: a rope type that is not supported, or settings it lacks.
    """
    theta = config.get("rope_theta", DEFAULT_THETA)
    settings = _mapping(config, "rope_scaling", source)
    parameters = _mapping(config, "rope_parameters", source)
    if parameters:
        theta = parameters.get("rope_theta", theta)
        settings = parameters
    values = _Settings(settings, source)
    kind = values.kind()
    values.check_whole_head()
    common = {"theta": _number(theta, "rope_theta", source), "kind": kind}
    if kind is RopeKind.DEFAULT:
        return RopeConfig(**common)
    if kind is RopeKind.LINEAR:
        return RopeConfig(**common, factor=values.required("factor"))
    longest = _number(config.get("max_position_embeddings"), "max_position_embeddings", source)
    original = values.number("original_max_position_embeddings", longest)
    common |= {"original_context_tokens": int(original)}
    if kind is RopeKind.LLAMA3:
        return RopeConfig(
            **common,
            factor=values.required("factor"),
            low_freq_factor=values.required("low_freq_factor"),
            high_freq_factor=values.required("high_freq_factor"),
        )
    return RopeConfig(
        **common,
        factor=values.number("factor", longest / original),
        beta_fast=values.number("beta_fast", 32.0),
        beta_slow=values.number("beta_slow", 1.0),
        truncates=settings.get("truncate", True) is not False,
        attention_factor=values.optional("attention_factor"),
        mscale=values.number("mscale", 0.0),
        mscale_all_dim=values.number("mscale_all_dim", 0.0),
    )


class _Settings:
    """The scaling part of the settings, read with errors that name the key."""

    def __init__(self, values: Mapping[str, object], source: str):
        self._values, self._source = values, source

    def kind(self) -> RopeKind:
        name = self._values.get("rope_type", self._values.get("type", "default"))
        if not isinstance(name, str) or name not in list(RopeKind):
            raise CheckpointError(
                f"{self._source}: rope type: got {name!r}, allowed: {', '.join(RopeKind)}"
            )
        return RopeKind(name)

    def check_whole_head(self) -> None:
        partial = self._values.get("partial_rotary_factor", 1.0)
        if partial != 1.0:
            raise CheckpointError(
                f"{self._source}: partial_rotary_factor: got {partial!r}, allowed: 1.0"
            )

    def optional(self, key: str) -> float | None:
        value = self._values.get(key)
        return None if value is None else _number(value, key, self._source)

    def number(self, key: str, default: float) -> float:
        value = self.optional(key)
        return value if value else default

    def required(self, key: str) -> float:
        return _number(self._values.get(key), key, self._source)


def _mapping(config: Mapping[str, object], key: str, source: str) -> dict[str, object]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: {key}: got {value!r}, allowed: a mapping or null")
    return value


def _number(value: object, key: str, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise CheckpointError(f"{source}: {key}: got {value!r}, allowed: a positive number")
    return float(value)
