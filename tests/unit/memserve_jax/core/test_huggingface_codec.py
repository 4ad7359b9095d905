"""`tokenizer.json`: which ids are bytes, which have text."""

import pytest
import tokenizers

from memserve_jax.core.huggingface_codec import HuggingFaceCodec
from tests.helpers import tokenizer_files


def test_byte_values_spell_what_the_library_decodes(tmp_path):
    tokenizer_files.write_byte_level(tmp_path)
    file = tmp_path / "tokenizer.json"
    codec, library = HuggingFaceCodec(file), tokenizers.Tokenizer.from_file(str(file))
    values = codec.byte_values
    assert values is not None
    for token, value in enumerate(values):
        assert value.decode(errors="replace") == library.decode([token])


@pytest.mark.parametrize(
    "write", [tokenizer_files.write_byte_fallback, tokenizer_files.write_metaspace]
)
def test_other_vocabularies_are_not_bytes(tmp_path, write):
    write(tmp_path)
    assert HuggingFaceCodec(tmp_path / "tokenizer.json").byte_values is None


def test_byte_tokens_count_only_with_byte_fallback(tmp_path):
    tokenizer_files.write_byte_fallback(tmp_path)
    codec = HuggingFaceCodec(tmp_path / "tokenizer.json")
    assert [codec.is_byte(token) for token in (0, 1, 256, 257)] == [False, True, True, False]


def test_special_tokens_have_no_text(tmp_path):
    tokenizer_files.write_byte_level(tmp_path)
    codec = HuggingFaceCodec(tmp_path / "tokenizer.json")
    eos = codec.token_id("</s>")
    assert eos is not None
    assert not codec.visible(eos)
    assert codec.decode([eos]) == ""
    assert codec.token_id("nothing") is None


def test_tokens_can_be_declared_special(tmp_path):
    tokenizer_files.write_word_piece(tmp_path)
    file = tmp_path / "tokenizer.json"
    assert HuggingFaceCodec(file).decode([1, 0, 3]) == "a [UNK] c"
    codec = HuggingFaceCodec(file, ["[UNK]", "<absent>"])
    assert codec.decode([1, 0, 3]) == "a c"
    assert codec.token_id("<absent>") is None
