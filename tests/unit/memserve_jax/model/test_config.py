"""Configs of each family, their defaults, and one clear line for what is not supported."""

import json

import pytest

from memserve_jax.core.errors import CheckpointError
from memserve_jax.model.config import ModelConfig, parse_model_config, read_model_config

LEAST = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
}


def parse(architecture: str, **keys: object) -> ModelConfig:
    return parse_model_config({"architectures": [architecture], **LEAST, **keys})


def test_llama_with_the_least_of_keys():
    config = parse("LlamaForCausalLM")
    assert (config.num_kv_heads, config.head_dim, config.max_context_tokens) == (32, 2, 2048)
    assert config.windows == (None, None, None)
    assert not config.has_qkv_bias and not config.has_qk_norm and not config.ties_embeddings


def test_llama_biases_are_options():
    config = parse("LlamaForCausalLM", attention_bias=True, mlp_bias=True)
    assert config.has_qkv_bias and config.has_output_bias and config.has_mlp_bias


def test_mistral_has_a_window_unless_it_is_null():
    assert parse("MistralForCausalLM").windows == (4096,) * 3
    assert parse("MistralForCausalLM", sliding_window=7).windows == (7, 7, 7)
    assert parse("MistralForCausalLM", sliding_window=None).windows == (None,) * 3
    assert parse("MistralForCausalLM").num_kv_heads == 8


def test_qwen2_has_qkv_bias_only_and_a_window_if_it_asks():
    config = parse("Qwen2ForCausalLM", sliding_window=9)
    assert config.has_qkv_bias and not config.has_output_bias
    assert config.windows == (None,) * 3
    windowed = parse(
        "Qwen2ForCausalLM", sliding_window=9, use_sliding_window=True, max_window_layers=1
    )
    assert windowed.windows == (None, 9, 9)


def test_layer_types_decide_where_given():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = parse("Qwen3ForCausalLM", sliding_window=9, use_sliding_window=True, layer_types=kinds)
    assert config.windows == (9, None, 9)
    assert parse("Qwen3ForCausalLM", layer_types=kinds).windows == (None,) * 3


def test_qwen3_has_head_norms_and_its_own_head_dim():
    config = parse("Qwen3ForCausalLM")
    assert config.has_qk_norm and config.head_dim == 128
    assert parse("Qwen3ForCausalLM", head_dim=16).head_dim == 16


def test_layout_has_the_true_heads():
    layout = parse("LlamaForCausalLM", num_key_value_heads=4).layout(16, "bfloat16")
    assert layout.packed_shape(5) == (5, 3, 2, 4, 16, 2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures: got 'GPT2LMHeadModel', allowed: "),
        ({"architectures": None}, "architectures: got None"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', allowed: silu or swish"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: got {'bits': 4}"),
        ({"vocab_size": None}, "vocab_size: got None, allowed: a positive integer"),
        ({"hidden_size": "64"}, "hidden_size: got '64'"),
        ({"num_key_value_heads": 5}, "num_key_value_heads: got 5, allowed: a divisor of the 32"),
        ({"head_dim": 3}, "head_dim: got 3, allowed: an even number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: got 'small'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: got 'yes'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope type: got 'dynamic'"),
    ],
)
def test_what_is_unsupported_is_named(keys, message):
    values = {"architectures": ["LlamaForCausalLM"], **LEAST, **keys}
    with pytest.raises(CheckpointError) as caught:
        parse_model_config(values, source="here/config.json")
    assert str(caught.value).startswith(f"here/config.json: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"layer_types": ["full_attention"]},
        {"layer_types": ["full_attention", "full_attention", "linear_attention"]},
        {"max_window_layers": "all"},
        {"sliding_window": 0},
    ],
)
def test_senseless_windows_are_refused(keys):
    with pytest.raises(CheckpointError, match=next(iter(keys))):
        parse("Qwen2ForCausalLM", use_sliding_window=True, **keys)


def test_reading_a_directory(tmp_path):
    with pytest.raises(CheckpointError, match="meta/llama: no such directory"):
        read_model_config("meta/llama")
    with pytest.raises(CheckpointError, match=r"config.json: no such file"):
        read_model_config(str(tmp_path))
    for text, problem in (("{", "not JSON"), ("[]", "got list"), ("\udcff", "not JSON")):
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(CheckpointError, match=problem):
            read_model_config(str(tmp_path))
    values = {"architectures": ["LlamaForCausalLM"], **LEAST}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_model_config(str(tmp_path)) == parse_model_config(values)
