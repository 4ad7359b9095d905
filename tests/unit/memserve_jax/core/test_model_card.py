"""Cards from `config.json` and `generation_config.json`, and what they refuse."""

import json

import pytest

from memserve_jax.core.errors import CheckpointError
from memserve_jax.core.model_card import load_card

CONFIG = {"vocab_size": 512, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture
def card(tmp_path):
    def load(generation=None, **config):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | config))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return load_card(str(tmp_path))

    return load


def test_facts(card, tmp_path):
    found = card()
    assert (found.vocab_size, found.max_context_tokens, found.bos_token_id) == (512, 1024, 1)
    assert found.eos_token_ids == {2}
    assert found.name == tmp_path.name
    assert found.sampling.temperature == 1.0
    assert found.sampling.max_tokens == 128


def test_every_end_token_of_both_files_counts(card):
    assert card({"eos_token_id": [7, 9]}, eos_token_id=[2, 3]).eos_token_ids == {2, 3, 7, 9}
    assert card({}, eos_token_id=None).eos_token_ids == frozenset()


def test_sampling_defaults(card):
    sampling = card(
        {"do_sample": False, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1,
         "repetition_penalty": 1.05}
    ).sampling  # fmt: skip
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.6, 20, 0.95)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.05)


@pytest.mark.parametrize(("top_k", "kept"), [(None, 0), (-1, 0), (0, 0), (50, 50)])
def test_top_k_of_none_or_minus_one_keeps_all(card, top_k, kept):
    assert card({"top_k": top_k}).sampling.top_k == kept


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("scaling", "tokens"),
    [
        ({"rope_type": "linear", "factor": 2.0}, 2048),
        ({"type": "linear", "factor": 4}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}, 1024),
        ({"rope_type": "default", "rope_theta": 1e4}, 1024),
    ],
)
def test_rope_scaling_lengthens_the_context(card, key, scaling, tokens):
    assert card(**{key: scaling}).max_context_tokens == tokens


@pytest.mark.parametrize(
    ("config", "generation", "message"),
    [
        ({"vocab_size": None}, None, "config.json: vocab_size: got None"),
        ({"max_position_embeddings": "x"}, None, "max_position_embeddings: got 'x'"),
        ({"eos_token_id": "</s>"}, None, "eos_token_id: got '</s>'"),
        ({"eos_token_id": [-1]}, None, "eos_token_id: got -1"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, None, "factor: got 0"),
        ({}, {"temperature": -1}, "generation_config.json: temperature: got -1"),
        ({}, {"top_p": 0}, "top_p: got 0"),
        ({}, {"min_p": True}, "min_p: got True"),
        ({}, {"repetition_penalty": "high"}, "repetition_penalty: got 'high'"),
    ],
)
def test_impossible_values(card, config, generation, message):
    with pytest.raises(CheckpointError, match=message):
        card(generation, **config)
