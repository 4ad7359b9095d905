import json

import pytest

from memserve_jax.bench.dataset import DatasetOptions, load_dataset
from memserve_jax.bench.workload import ChatTurn, Message, TextTurn, TokenTurn
from memserve_jax.core.errors import ConfigError

OPTIONS = DatasetOptions(draw_output_tokens=lambda: 11)
SHAREGPT = [
    {
        "id": "abc",
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "hi"},
            {"from": "gpt", "value": "hello there you"},
            {"from": "human", "value": "bye"},
        ],
    },
    {"id": "silent", "conversations": [{"from": "gpt", "value": "nobody asked"}]},
]


def write(tmp_path, *lines):
    path = tmp_path / "set.jsonl"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return str(path)


def test_each_kind_of_line_is_one_session(tmp_path):
    path = write(
        tmp_path,
        {"prompt": "hé\u2028llo", "output_tokens": 3},
        "",
        {"token_ids": [1, 2, 3]},
        {"messages": [{"role": "user", "content": "hi"}]},
    )
    sessions = load_dataset(path, OPTIONS)
    assert [session.turns for session in sessions] == [
        (TextTurn(text="hé\u2028llo", output_tokens=3),),
        (TokenTurn(token_ids=(1, 2, 3), output_tokens=11),),
        (ChatTurn(messages=(Message("user", "hi"),), output_tokens=11),),
    ]
    assert len({session.session_id for session in sessions}) == 3


def test_lines_of_one_session_are_its_turns(tmp_path):
    path = write(
        tmp_path,
        {"prompt": "a", "session_id": "x"},
        {"prompt": "b"},
        {"prompt": "c", "session_id": "x"},
    )
    sessions = load_dataset(path, OPTIONS)
    assert [[turn.text for turn in session.turns] for session in sessions] == [["a", "c"], ["b"]]


def test_sharegpt_turns_are_the_human_messages(tmp_path):
    (session,) = load_dataset(write(tmp_path, SHAREGPT), OPTIONS)
    assert session.session_id == "abc"
    assert session.turns == (
        ChatTurn(messages=(Message("system", "be brief"), Message("user", "hi")), output_tokens=11),
        ChatTurn(messages=(Message("user", "bye"),), output_tokens=11),
    )


def test_sharegpt_answers_are_measured_where_a_tokenizer_is_given(tmp_path):
    options = DatasetOptions(
        draw_output_tokens=lambda: 11, count_tokens=lambda text: len(text.split()), as_text=True
    )
    (session,) = load_dataset(write(tmp_path, SHAREGPT), options)
    assert session.turns == (
        TextTurn(text="be brief\nhi\n", output_tokens=3),
        TextTurn(text="bye\n", output_tokens=11),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"set.jsonl:1: not JSON"),
        ('"text"', r"set.jsonl:1: got str, allowed: an object"),
        ({"prompt": "a", "max_tokens": 3}, r"max_tokens: unknown key, allowed: prompt"),
        ({"output_tokens": 3}, r"got no prompt, allowed: exactly one of"),
        ({"prompt": "a", "token_ids": [1]}, r"got prompt, token_ids, allowed: exactly one"),
        ({"prompt": 5}, r"prompt: got 5, allowed: text"),
        ({"token_ids": []}, r"token_ids: got \[\], allowed: a list that is not empty"),
        ({"token_ids": [1, -1]}, r"token_ids: got -1, allowed: a whole number from 0"),
        ({"token_ids": [True]}, r"token_ids: got true"),
        ({"prompt": "a", "output_tokens": 0}, r"output_tokens: got 0, allowed: a whole number"),
        ({"messages": [{"role": "user"}]}, r"content: got null, allowed: text"),
        ({"prompt": "a", "session_id": 5}, r"session_id: got 5, allowed: text"),
        ([{"id": "x"}], r"entry 0: conversations: missing"),
        ([{"conversations": [{"from": "human"}]}], r"value: got null, allowed: text"),
        ("[]", r"allowed: a list that is not empty"),
        ("", r"holds no request"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        load_dataset(write(tmp_path, line), OPTIONS)


def test_a_session_keeps_to_one_kind_of_prompt(tmp_path):
    path = write(
        tmp_path, {"prompt": "a", "session_id": "x"}, {"token_ids": [1], "session_id": "x"}
    )
    with pytest.raises(ConfigError, match=r"set.jsonl:2: session 'x' mixes kinds of prompt"):
        load_dataset(path, OPTIONS)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--dataset .*nowhere.jsonl: cannot read"):
        load_dataset(str(tmp_path / "nowhere.jsonl"), OPTIONS)


def test_invalid_utf8_is_named(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ConfigError, match="cannot read"):
        load_dataset(str(path), OPTIONS)
