"""`tokenizer.model`: special and added tokens, spaces, BOS."""

import pytest

from memserve_jax.core.errors import CheckpointError
from memserve_jax.core.sentencepiece_codec import SentencePieceCodec
from tests.helpers import tokenizer_files

ADDED = {"added_tokens_decoder": {"400": {"content": "<tool>"}}}


@pytest.fixture
def file(tmp_path):
    tokenizer_files.write_sentence_piece(tmp_path)
    return tmp_path / "tokenizer.model"


def test_bos_by_default_and_eos_on_demand(file):
    assert SentencePieceCodec(file, {}).encode("h", add_special_tokens=True)[0] == 1
    codec = SentencePieceCodec(file, {"add_bos_token": False, "add_eos_token": True})
    ids = codec.encode("h", add_special_tokens=True)
    assert (ids[0] != 1, ids[-1]) == (True, 2)


def test_special_tokens_in_text_are_tokens(file):
    codec = SentencePieceCodec(file, ADDED)
    ids = codec.encode("<s>hello</s><tool>world", add_special_tokens=False)
    assert ids[0] == 1
    assert 2 in ids
    assert 400 in ids
    assert codec.decode(ids) == "hello<tool> world"


def test_only_the_first_text_gets_a_space_unless_legacy(file):
    codec = SentencePieceCodec(file, {**ADDED, "legacy": False})
    ids = codec.encode("<tool>hello<tool>world", add_special_tokens=False)
    assert codec.decode(ids) == "<tool>hello<tool>world"


def test_unknown_ids_have_no_text(file):
    codec = SentencePieceCodec(file, {})
    assert codec.decode([-1, 0, 1, 2, 10_000]) == ""
    assert not codec.visible(0)


def test_tokens_by_spelling(file):
    codec = SentencePieceCodec(file, ADDED)
    assert [codec.token_id(text) for text in ("<s>", "<tool>", "nothing")] == [1, 400, None]


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        SentencePieceCodec(tmp_path / "tokenizer.model", {})
