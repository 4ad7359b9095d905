"""The byte-level tokenizer is reversible and speaks its special tokens."""

import json

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from memserve_jax.core import byte_tokenizer
from memserve_jax.core.byte_tokenizer import BOS, write_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(str(path), max_context_tokens=512)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@settings(deadline=None)
@given(text=st.text().filter(lambda text: "<|" not in text))
def test_tokens_are_the_bytes(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert ids == [BOS, *text.encode()]
    assert tokenizer.decode(ids) == text


def test_vocabulary_is_bytes_and_special_tokens(tokenizer):
    assert tokenizer.get_vocab_size() == byte_tokenizer.TOKENIZER_SIZE == 264
    assert tokenizer.token_to_id("<|eos|>") == byte_tokenizer.EOS == 257


def test_chat_template_speaks_special_tokens(directory, tokenizer):
    config = json.loads((directory / "tokenizer_config.json").read_text())
    text = jinja2.Template(config["chat_template"]).render(
        messages=[{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        bos_token=config["bos_token"],
        add_generation_prompt=True,
    )
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert [i for i in ids if i >= 256] == [256, 260, 259, 261, 259, 262]
