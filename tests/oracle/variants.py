"""The golden checkpoints: one per family and quirk, and how to switch each quirk off."""

import copy
import dataclasses
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
LARGER = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 4}


@dataclass(frozen=True)
class Feature:
    """A quirk, by what to do to a model to lose it."""

    name: str
    bites_from: int  # prompt length from which its loss must show
    config: dict[str, object] | None = None  # keys of `config.json` to set instead
    weights: Callable[[torch.nn.Module], None] | None = None  # or: weights to spoil

    def without(self, model: torch.nn.Module) -> torch.nn.Module:
        """Returns a copy of `model` that lacks this feature."""
        if self.config is None:
            spoilt = copy.deepcopy(model)
            self.weights(spoilt)
            return spoilt
        values = json.loads((pathlib.Path(model.config._name_or_path) / "config.json").read_text())
        config = AutoConfig.for_model(**{**values, **self.config})
        config._attn_implementation = "eager"
        other = AutoModelForCausalLM.from_config(config)
        other.load_state_dict(model.state_dict())
        return other.eval()


@dataclass(frozen=True)
class Variant:
    """A golden checkpoint."""

    config: dict[str, object]  # what is special in `config.json`
    features: tuple[Feature, ...] = ()
    dtype: torch.dtype = torch.bfloat16  # of the weights in the file
    num_files: int = 1
    is_scaled_up: bool = False

    @property
    def ties_embeddings(self) -> bool:
        """Whether head and embedding are one tensor."""
        return bool(self.config["tie_word_embeddings"])

    def scaled_up(self) -> "Variant":
        """Returns this variant with more layers and wider ones."""
        config = {**self.config, **LARGER}
        if "layer_types" in config:
            config["layer_types"] = config["layer_types"] * 2
        return dataclasses.replace(self, config=config, is_scaled_up=True)

    def parsed_config(self, directory: pathlib.Path) -> object:
        """Returns the directory's config as transformers reads it."""
        return AutoConfig.from_pretrained(directory)


def _zero(part: str) -> Callable[[torch.nn.Module], None]:
    def spoil(model: torch.nn.Module) -> None:
        for name, weight in model.named_parameters():
            if part in name:
                weight.data.zero_()

    return spoil


def _no_head_norms(model: torch.nn.Module) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_norm = torch.nn.Identity()
        layer.self_attn.k_norm = torch.nn.Identity()


PLAIN_ROPE = {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
VARIANTS = {
    "llama2": Variant(
        {
            **SIZES,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
        (Feature("rope", 15, {"rope_theta": 1e7}),),
        dtype=torch.float16,
    ),
    "llama3": Variant(
        {
            **SIZES,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
        (Feature("llama3 rope", 333, PLAIN_ROPE),),
    ),
    "llama_linear": Variant(
        {
            **SIZES,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "rope_theta": 1e4,
            "rope_scaling": {"type": "linear", "factor": 4.0},
        },
        (
            Feature("linear rope", 333, PLAIN_ROPE),
            Feature("attention bias", 16, weights=_zero("_proj.bias")),
            Feature("MLP bias", 16, weights=_zero("down_proj.bias")),
        ),
        num_files=3,
    ),
    "llama_yarn": Variant(
        {
            **SIZES,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_theta": 1e4,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        },
        (
            Feature("yarn rope", 333, PLAIN_ROPE),
            Feature(
                "yarn amplitude",
                333,
                {
                    "rope_scaling": None,
                    "rope_parameters": {
                        "rope_type": "yarn",
                        "rope_theta": 1e4,
                        "factor": 4.0,
                        "original_max_position_embeddings": 256,
                        "attention_factor": 1.0,
                    },
                },
            ),
        ),
    ),
    "mistral": Variant(
        {
            **SIZES,
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "head_dim": 16,
            "sliding_window": 48,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        (
            Feature("sliding window", 90, {"sliding_window": None}),
            Feature("window size", 90, {"sliding_window": 49}),
        ),
    ),
    "qwen2": Variant(
        {
            **SIZES,
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "num_attention_heads": 4,
            "tie_word_embeddings": True,
            "rope_theta": 1e6,
            "use_sliding_window": True,
            "sliding_window": 40,
            "max_window_layers": 1,
        },
        (
            Feature("QKV bias", 16, weights=_zero("_proj.bias")),
            Feature("sliding window", 90, {"use_sliding_window": False}),
            Feature("full layers", 90, {"max_window_layers": 0}),
        ),
    ),
    "qwen3": Variant(
        {
            **SIZES,
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "head_dim": 24,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        (Feature("QK norm", 15, weights=_no_head_norms),),
    ),
}
