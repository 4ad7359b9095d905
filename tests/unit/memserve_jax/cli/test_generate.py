"""`memserve generate`: streams text, or prints one object."""

import json

import grpc
import pytest

from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.fake_server import ANSWER

KEYS = [
    "token_ids", "text", "finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens",
    "ttft_s", "jct_s", "prefill_instance", "decode_instance",
]  # fmt: skip


@pytest.fixture
def generate(memserve, server):
    return lambda *arguments, **more: memserve(
        "generate", "--target", server.target, *arguments, **more
    )


def test_streams_text(generate):
    ended = generate("hello")
    assert (ended.status, ended.out, ended.err) == (0, "one zwei €\n", "")


def test_json_has_exactly_the_promised_keys(generate):
    ended = generate("hello", "--json")
    found = json.loads(ended.out)
    assert list(found) == KEYS
    assert found["token_ids"] == [7, 8, 9]
    assert (found["text"], found["finish_reason"]) == ("one zwei €", "STOP")
    assert (found["prompt_tokens"], found["cached_tokens"], found["completion_tokens"]) == (5, 3, 3)
    assert (found["ttft_s"], found["jct_s"]) == (0.5, 1.5)
    assert (found["prefill_instance"], found["decode_instance"]) == ("p0", "d0")


def test_every_option_arrives(generate, server):
    generate(
        "--token-ids", "1,2, 3", "--max-tokens", "4", "--temperature", "0.5", "--top-k", "5",
        "--top-p", "0.5", "--min-p", "0.25", "--seed", "6", "--stop", "a", "--stop", "b",
        "--ignore-eos", "--session", "s", "--cache-salt", "c", "--priority", "-2",
        "--timeout", "60",
    )  # fmt: skip
    assert server.requests == [
        pb.GenerateRequest(
            session_id="s",
            token_ids=pb.TokenIds(ids=[1, 2, 3]),
            sampling=pb.SamplingParams(
                max_tokens=4, temperature=0.5, top_k=5, top_p=0.5, min_p=0.25, seed=6,
                stop=["a", "b"], ignore_eos=True,
            ),
            cache_salt="c",
            priority=-2,
        )
    ]  # fmt: skip
    assert 30 < server.time_limits_s[0] < 120


def test_unset_options_are_the_models_own(generate, server):
    generate("hello")
    assert server.requests == [pb.GenerateRequest(text="hello")]


def test_greedy_is_temperature_0(generate, server):
    generate("hello", "--greedy")
    assert server.requests[0].sampling.temperature == 0
    assert server.requests[0].sampling.HasField("temperature")


def test_a_prompt_from_standard_input_is_taken_as_it_is(generate, server):
    generate("-", stdin="é\n".encode())
    assert server.requests[0].text == "é\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "line"),
    [
        ([], b"", "PROMPT: got nothing, allowed: a text, - or --token-ids"),
        (["-"], b"ab\xff", "PROMPT: standard input is not UTF-8: byte 0xff at 2"),
        (["a\udcff"], b"", "text: not valid Unicode text"),
        (["--token-ids", "1,b"], b"", "--token-ids: got '1,b', allowed: numbers joined by commas"),
        (["--token-ids", "-1"], b"", "token_ids: "),
        (["--token-ids", "1", "x"], b"", "--token-ids: got PROMPT beside it"),
        (["x", "--greedy", "--temperature", "1"], b"", "--greedy: got --temperature 1.0 beside"),
        (["x", "--max-tokens", str(2**40)], b"", "max_tokens: "),
    ],
)
def test_bad_arguments(generate, server, arguments, stdin, line):
    ended = generate(*arguments, stdin=stdin)
    assert ended.status == 2
    assert ended.err.startswith(f"memserve generate: {line}")
    assert ended.err.count("\n") == 1
    assert server.requests == []


def test_the_servers_refusal_is_one_line(generate, server):
    server.replies["Generate"] = (
        grpc.StatusCode.INVALID_ARGUMENT, "sampling.max_tokens: got 0, allowed: >= 1"
    )  # fmt: skip
    ended = generate("hello", "--max-tokens", "0")
    assert ended.status == 1
    assert ended.err == (
        "memserve generate: INVALID_ARGUMENT: sampling.max_tokens: got 0, allowed: >= 1\n"
    )


def test_an_answer_the_server_cancelled(generate, server):
    last = pb.GenerateResponse(first_index=1, finish_reason=pb.CANCELLED)
    server.replies["Generate"] = [ANSWER[0], last]
    ended = generate("hello")
    assert (ended.status, ended.out) == (1, "one \n")
    assert ended.err == "memserve generate: CANCELLED: the server cancelled the request\n"


def test_what_came_before_a_failure_is_shown(generate, server):
    server.replies["Generate"] = [ANSWER[0]]
    ended = generate("hello")
    assert (ended.status, ended.out) == (1, "one \n")
    assert "DATA_LOSS" in ended.err
