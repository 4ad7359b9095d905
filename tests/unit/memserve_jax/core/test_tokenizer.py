"""Prompts and chats to ids, as the files of a model directory say."""

import json

import pytest

from memserve_jax.core.errors import CheckpointError, InvalidRequestError
from memserve_jax.core.tokenizer import load_tokenizer
from tests.helpers import tokenizer_files
from tests.helpers.tokenizer_files import CHAT_TEMPLATE

CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture
def folder(tmp_path):
    tokenizer_files.write_byte_level(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["hello world", "é€😀", "a</s>b"])
def test_text_comes_back(folder, text):
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("</s>", "")


def test_ids_beyond_the_vocabulary_have_no_text(folder):
    tokenizer = load_tokenizer(str(folder))
    ids = tokenizer.encode("hello")
    assert tokenizer.decode([100_000, *ids, 100_000]) == "hello"


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("asks_bos", [True, False, None])
def test_one_bos_whoever_adds_it(tmp_path, adds_bos, asks_bos):
    tokenizer_files.write_byte_level(tmp_path, adds_bos=adds_bos)
    values = {} if asks_bos is None else {"add_bos_token": asks_bos}
    tokenizer_files.write_config(tmp_path, **values)
    tokenizer = load_tokenizer(str(tmp_path))
    plain, whole = tokenizer.encode("<s>")[-1:], tokenizer.encode("hello")
    assert whole.count(plain[0]) == int(adds_bos or bool(asks_bos))


def test_a_rendered_chat_has_one_bos(tmp_path):
    tokenizer_files.write_byte_level(tmp_path, adds_bos=True)
    tokenizer_files.write_config(tmp_path, add_bos_token=True, chat_template=CHAT_TEMPLATE)
    tokenizer = load_tokenizer(str(tmp_path))
    bos = tokenizer.encode("")[0]
    ids = tokenizer.encode_chat(CHAT)
    assert ids[0] == bos
    assert ids.count(bos) == 1
    assert tokenizer.decode(ids) == "[user]hello[assistant]"


def test_a_model_without_a_template_takes_no_chats(folder):
    tokenizer = load_tokenizer(str(folder))
    assert not tokenizer.takes_chats
    with pytest.raises(InvalidRequestError, match="no chat template"):
        tokenizer.encode_chat(CHAT)


def test_a_tokenizers_own_truncation_and_padding_are_off(folder):
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    values["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    file.write_text(json.dumps(values))
    assert len(load_tokenizer(str(folder)).encode("abcdefgh")) == 8


def test_special_tokens_map_gives_bos(folder):
    (folder / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}}')
    (folder / "chat_template.jinja").write_text("{{ bos_token }}x")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.encode_chat(CHAT) == tokenizer.encode("<s>x")


def test_json_goes_before_sentencepiece(folder):
    tokenizer_files.write_sentence_piece(folder)
    assert len(load_tokenizer(str(folder)).encode("quick")) == 5


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, "tokenizer.json: cannot read: "),
        ({"tokenizer.model": "not one"}, "tokenizer.model: not a sentencepiece model"),
        ({"tokenizer_config.json": "[]"}, "tokenizer_config.json: got list"),
        ({"tokenizer_config.json": "{,}"}, "tokenizer_config.json: not JSON"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message) as failure:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(failure.value)


def test_without_a_tokenizer_only_token_ids_are_served(tmp_path, caplog):
    tokenizer = load_tokenizer(str(tmp_path))
    assert "takes token_ids only" in caplog.text
    assert not tokenizer.has_text
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        tokenizer.encode("text")
    with pytest.raises(InvalidRequestError, match="no chat template"):
        tokenizer.encode_chat(CHAT)
    stream = tokenizer.text_stream()
    assert stream.push([5, 6]) + stream.flush() == tokenizer.decode([5, 6]) == ""
