"""What a checkpoint's `config.json` says about its arithmetic. Quirks of families are fields."""

from collections.abc import Mapping
from dataclasses import dataclass

from memserve_jax.core.checkpoint_files import checkpoint_dir, read_json
from memserve_jax.core.errors import CheckpointError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.model.rope_config import RopeConfig, parse_rope

ACTIVATIONS = ("silu", "swish")  # two names of one function


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What an architecture fixes, and its defaults for keys that `config.json` leaves out."""

    num_kv_heads: int | None  # None: as many as query heads
    max_context_tokens: int
    head_dim: int | None = None  # None: hidden size / heads
    sliding_window: int | None = None
    chooses_windows: bool = False  # by use_sliding_window, max_window_layers, layer_types
    has_qkv_bias: bool = False  # whatever the config says
    has_attention_bias_option: bool = False  # attention_bias, of all four projections
    has_mlp_bias_option: bool = False
    has_qk_norm: bool = False


FAMILIES = {
    "LlamaForCausalLM": Family(
        num_kv_heads=None,
        max_context_tokens=2048,
        has_attention_bias_option=True,
        has_mlp_bias_option=True,
    ),
    "MistralForCausalLM": Family(num_kv_heads=8, max_context_tokens=131_072, sliding_window=4096),
    "Qwen2ForCausalLM": Family(
        num_kv_heads=32,
        max_context_tokens=32_768,
        sliding_window=4096,
        chooses_windows=True,
        has_qkv_bias=True,
    ),
    "Qwen3ForCausalLM": Family(
        num_kv_heads=32,
        max_context_tokens=32_768,
        head_dim=128,
        sliding_window=4096,
        chooses_windows=True,
        has_attention_bias_option=True,
        has_qk_norm=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and quirks of one decoder."""

    architecture: str
    vocab_size: int  # V
    embed_dim: int  # D
    ffn_dim: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    max_context_tokens: int
    norm_epsilon: float
    rope: RopeConfig
    windows: tuple[int | None, ...]  # per layer: tokens a query sees, itself included; None: all
    ties_embeddings: bool = False
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_mlp_bias: bool = False
    has_qk_norm: bool = False

    def layout(self, block_size_tokens: int, dtype: str) -> KVLayout:
        """Returns the layout of this model's KV."""
        return KVLayout(
            num_layers=self.num_layers,
            num_kv_heads=self.num_kv_heads,
            block_size_tokens=block_size_tokens,
            head_dim=self.head_dim,
            dtype=dtype,
        )


def read_model_config(directory: str) -> ModelConfig:
    """Returns the config of a Hugging Face directory or of `memserve convert`'s output.

    Raises:
      CheckpointError: no directory, no readable `config.json`, or what `parse_model_config`
        raises.
    """
    file = checkpoint_dir(directory) / "config.json"
    return parse_model_config(read_json(file), source=str(file))


def parse_model_config(values: Mapping[str, object], *, source: str = "config.json") -> ModelConfig:
    """Returns the config that a parsed `config.json` describes.

    Args:
      values: The parsed file.
      source: Its name, for messages.

    Raises:
      CheckpointError: an architecture, activation, rope type or quantization that is not
        supported, or a key that is missing or senseless.
    """
    keys = _Keys(values, source)
    architecture, family = keys.family()
    keys.check_supported()
    num_heads = keys.size("num_attention_heads")
    embed_dim = keys.size("hidden_size")
    num_kv_heads = keys.size("num_key_value_heads", family.num_kv_heads or num_heads)
    head_dim = keys.size("head_dim", family.head_dim or embed_dim // num_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"{source}: num_key_value_heads: got {num_kv_heads}, "
            f"allowed: a divisor of the {num_heads} query heads"
        )
    if head_dim % 2:
        raise CheckpointError(f"{source}: head_dim: got {head_dim}, allowed: an even number")
    attention_bias = family.has_attention_bias_option and keys.flag("attention_bias")
    return ModelConfig(
        architecture=architecture,
        vocab_size=keys.size("vocab_size"),
        embed_dim=embed_dim,
        ffn_dim=keys.size("intermediate_size"),
        num_layers=keys.size("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_context_tokens=keys.size("max_position_embeddings", family.max_context_tokens),
        norm_epsilon=keys.epsilon(),
        rope=parse_rope(
            {"max_position_embeddings": family.max_context_tokens} | dict(values), source=source
        ),
        windows=keys.windows(family),
        ties_embeddings=keys.flag("tie_word_embeddings"),
        has_qkv_bias=family.has_qkv_bias or attention_bias,
        has_output_bias=attention_bias,
        has_mlp_bias=family.has_mlp_bias_option and keys.flag("mlp_bias"),
        has_qk_norm=family.has_qk_norm,
    )


class _Keys:
    """Reads single keys, with errors that name the file, the key and the value."""

    def __init__(self, values: Mapping[str, object], source: str):
        self._values, self._source = values, source

    def family(self) -> tuple[str, Family]:
        names = self._values.get("architectures")
        name = names[0] if isinstance(names, list) and names else None
        if name not in FAMILIES:
            raise CheckpointError(
                f"{self._source}: architectures: got {name!r}, allowed: {', '.join(FAMILIES)}"
            )
        return name, FAMILIES[name]

    def check_supported(self) -> None:
        activation = self._values.get("hidden_act", "silu")
        if activation not in ACTIVATIONS:
            raise self._error("hidden_act", " or ".join(ACTIVATIONS))
        if self._values.get("quantization_config"):
            raise self._error("quantization_config", "none (weights as float32, float16, bfloat16)")

    def size(self, key: str, default: int | None = None) -> int:
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._error(key, "a positive integer")
        return value

    def flag(self, key: str) -> bool:
        value = self._values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._error(key, "true or false")
        return bool(value)

    def epsilon(self) -> float:
        value = self._values.get("rms_norm_eps", 1e-6)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise self._error("rms_norm_eps", "a number, at least 0")
        return float(value)

    def windows(self, family: Family) -> tuple[int | None, ...]:
        num_layers = self.size("num_hidden_layers")
        window = self._window(family)
        if not family.chooses_windows:
            return (window,) * num_layers
        kinds = self._values.get("layer_types")
        if kinds is None:
            first = self._values.get("max_window_layers", 28)
            if not isinstance(first, int):
                raise self._error("max_window_layers", "an integer")
            return tuple(window if layer >= first else None for layer in range(num_layers))
        allowed = {"full_attention": None, "sliding_attention": window}
        if not isinstance(kinds, list) or len(kinds) != num_layers or set(kinds) - set(allowed):
            raise self._error("layer_types", f"{num_layers} of {', '.join(allowed)}")
        return tuple(allowed[kind] for kind in kinds)

    def _window(self, family: Family) -> int | None:
        if family.chooses_windows and not self.flag("use_sliding_window"):
            return None
        if "sliding_window" in self._values and self._values["sliding_window"] is None:
            return None
        return self.size("sliding_window", family.sliding_window) if family.sliding_window else None

    def _error(self, key: str, allowed: str) -> CheckpointError:
        return CheckpointError(
            f"{self._source}: {key}: got {self._values.get(key)!r}, allowed: {allowed}"
        )
