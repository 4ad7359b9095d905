"""What a scheduler or engine must know of a model without loading it: ids, limits, defaults."""

import math
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from memserve_jax.core.checkpoint_files import checkpoint_dir, read_json, read_json_if_there
from memserve_jax.core.errors import CheckpointError
from memserve_jax.core.types import SamplingParams

_STRETCHED = ("linear", "yarn", "dynamic")  # rope types whose factor lengthens the context


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Facts from `config.json` and `generation_config.json`."""

    path: str
    name: str  # the directory's
    vocab_size: int  # rows of the embedding; the tokenizer may know fewer
    max_context_tokens: int
    bos_token_id: int | None
    eos_token_ids: frozenset[int]  # every id that ends an answer
    sampling: SamplingParams  # what an unset field of a request takes


def load_card(path: str) -> ModelCard:
    """Returns the card of the model directory `path`.

    Raises:
      CheckpointError: no such directory, a hub id, bad JSON, a missing or impossible value; one
        line that names the file and the key.
    """
    folder = checkpoint_dir(path)
    config_file, generation_file = folder / "config.json", folder / "generation_config.json"
    config = read_json(config_file)
    generation = read_json_if_there(generation_file)
    vocab_size = _count(config, "vocab_size", config_file)
    eos = _token_ids(config, "eos_token_id", config_file)
    eos |= _token_ids(generation, "eos_token_id", generation_file)
    bos = _token_ids(config, "bos_token_id", config_file) or _token_ids(
        generation, "bos_token_id", generation_file
    )
    return ModelCard(
        path=str(path),
        name=folder.resolve().name,
        vocab_size=vocab_size,
        max_context_tokens=_max_context_tokens(config, config_file),
        bos_token_id=min(bos, default=None),
        eos_token_ids=frozenset(eos),
        sampling=_sampling(generation, generation_file),
    )


def _max_context_tokens(config: Mapping[str, Any], file: pathlib.Path) -> int:
    """Returns `max_position_embeddings`, lengthened by rope scaling as vLLM does."""
    trained = _count(config, "max_position_embeddings", file)
    found = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(found, dict):
        return trained
    scaling = cast(dict[str, Any], found)
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in _STRETCHED:
        return trained
    factor = _number(scaling, "factor", file, low=1.0, allowed="a number >= 1")
    if kind == "yarn" and scaling.get("original_max_position_embeddings") is not None:
        original = _count(scaling, "original_max_position_embeddings", file)
        return max(trained, int(original * (factor or 1.0)))
    return int(trained * (factor or 1.0))


def _sampling(generation: Mapping[str, Any], file: pathlib.Path) -> SamplingParams:
    """Returns the defaults of a request; `do_sample` is ignored, as in vLLM."""
    default = SamplingParams()

    def number(key: str, fallback: float, low: float, high: float, allowed: str) -> float:
        value = _number(generation, key, file, low=low, high=high, allowed=allowed)
        return fallback if value is None else value

    top_k = number("top_k", float(default.top_k), -1.0, math.inf, "a whole number >= 0")
    tiny = math.nextafter(0.0, 1.0)
    return SamplingParams(
        temperature=number("temperature", default.temperature, 0.0, math.inf, "a number >= 0"),
        top_k=max(0, int(top_k)),
        top_p=number("top_p", default.top_p, tiny, 1.0, "0 < top_p <= 1"),
        min_p=number("min_p", default.min_p, 0.0, 1.0, "0 <= min_p <= 1"),
        repetition_penalty=number(
            "repetition_penalty", default.repetition_penalty, tiny, math.inf, "a number > 0"
        ),
        presence_penalty=number("presence_penalty", default.presence_penalty, -2.0, 2.0, "-2 to 2"),
        frequency_penalty=number(
            "frequency_penalty", default.frequency_penalty, -2.0, 2.0, "-2 to 2"
        ),
    )


def _number(
    values: Mapping[str, Any],
    key: str,
    file: pathlib.Path,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    allowed: str,
) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise CheckpointError(f"{file}: {key}: got {value!r}, allowed: {allowed}")
    return float(value)


def _count(values: Mapping[str, Any], key: str, file: pathlib.Path) -> int:
    return _checked(
        values.get(key), lambda count: count >= 1, f"{file}: {key}", "a whole number >= 1"
    )


def _token_ids(values: Mapping[str, Any], key: str, file: pathlib.Path) -> set[int]:
    """Returns the ids under `key`: a list, one id, or none."""
    value = values.get(key)
    items = cast(list[object], value) if isinstance(value, list) else [value]
    allowed = "a token id or a list of them"
    return {
        _checked(item, lambda token: token >= 0, f"{file}: {key}", allowed)
        for item in items
        if item is not None
    }


def _checked(value: Any, holds: Callable[[int], bool], what: str, allowed: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not holds(value):
        raise CheckpointError(f"{what}: got {value!r}, allowed: {allowed}")
    return value
