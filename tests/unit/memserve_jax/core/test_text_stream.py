"""A stream of an answer joins to the decoded whole, whatever the vocabulary."""

import functools
import pathlib
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memserve_jax.core.tokenizer import Tokenizer, load_tokenizer
from tests.helpers import tokenizer_files

WRITERS = {
    "byte_level": tokenizer_files.write_byte_level,
    "byte_fallback": tokenizer_files.write_byte_fallback,
    "metaspace": tokenizer_files.write_metaspace,
    "word_piece": tokenizer_files.write_word_piece,
    "sentence_piece": tokenizer_files.write_sentence_piece,
    "sentence_piece_removing_spaces": functools.partial(
        tokenizer_files.write_sentence_piece, removes_spaces=True
    ),
}
ADDED = {
    "added_tokens_decoder": {
        "400": {"content": "<tool>", "special": False},
        "401": {"content": "<|end|>", "special": True},
    }
}
TEXTS = [
    "hello world",
    " h  h",
    "é€ 日本 😀",
    "naïve x <tool>",
    "naive\n\tx",
    "\ufffd h \ufffd",
    "  h",
]


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        WRITERS[kind](pathlib.Path(folder))
        tokenizer_files.write_config(pathlib.Path(folder), **ADDED)
        return load_tokenizer(folder)


def streamed(kind: str, pushes: list[list[int]]) -> str:
    stream = tokenizer(kind).text_stream()
    return "".join([stream.push(ids) for ids in pushes] + [stream.flush()])


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=150)
@given(data=st.data())
def test_any_ids_in_any_pushes_join_to_the_decoded_whole(kind, data):
    byte_heavy = st.integers(0, 420) | st.integers(128, 256) | st.integers(1, 262)
    pushes = data.draw(st.lists(st.lists(byte_heavy, max_size=4), max_size=12))
    whole = [token for push in pushes for token in push]
    assert streamed(kind, pushes) == tokenizer(kind).decode(whole)


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=60)
@given(text=st.lists(st.sampled_from(TEXTS) | st.text(max_size=6), max_size=4).map("".join))
def test_text_survives_one_token_at_a_time(kind, text):
    ids = tokenizer(kind).encode(text)
    assert streamed(kind, [[token] for token in ids]) == tokenizer(kind).decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "sentence_piece"])
def test_never_half_a_character(kind):
    text = "h 😀€é日 h"
    ids = tokenizer(kind).encode(text)
    stream = tokenizer(kind).text_stream()
    pieces = [stream.push([token]) for token in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join([*pieces, stream.flush()]) == text


def test_byte_level_emits_a_character_with_its_last_byte():
    ids = tokenizer("byte_level").encode("😀")
    stream = tokenizer("byte_level").text_stream()
    assert [stream.push([token]) for token in ids] == ["", "", "", "😀"]


def test_what_never_ends_comes_with_the_flush():
    ids = tokenizer("byte_level").encode("😀")[:2]
    stream = tokenizer("byte_level").text_stream()
    assert stream.push(ids) == ""
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace", "sentence_piece"])
def test_a_token_costs_the_same_however_long_the_answer(kind, monkeypatch):
    codec = tokenizer(kind)._codec
    lengths, decode = [], codec.decode

    def counting(token_ids):
        lengths.append(len(token_ids))
        return decode(token_ids)

    monkeypatch.setattr(codec, "decode", counting)
    stream = tokenizer(kind).text_stream()
    for token in codec.encode("h" * 300, add_special_tokens=False):
        stream.push([token])
    assert max(lengths, default=0) <= 3
