"""Python values to requests; what does not fit is named."""

import pytest

from memserve_jax.client.request import Prompt, build_request
from memserve_jax.proto import memserve_pb2 as pb


def test_chats():
    messages = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": ""}]
    request = build_request(Prompt(messages=messages), {})
    assert request.chat.messages[0] == pb.ChatMessage(role="user", content="hé")
    assert request.chat.messages[1] == pb.ChatMessage(role="assistant")


@pytest.mark.parametrize("prompt", [Prompt(token_ids=[]), Prompt(messages=[]), Prompt("")])
def test_an_empty_prompt_is_the_servers_to_refuse(prompt):
    assert build_request(prompt, {}).WhichOneof("prompt") is not None


def test_none_leaves_a_field_unset():
    request = build_request(Prompt("x"), {"temperature": None, "session_id": None, "top_k": 0})
    assert not request.sampling.HasField("temperature")
    assert request.sampling.HasField("top_k")


def test_one_stop_string_is_not_many_letters():
    assert list(build_request(Prompt("x"), {"stop": "end"}).sampling.stop) == ["end"]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (Prompt("\udcff"), {}, "text: not valid Unicode"),
        (Prompt(token_ids=[1, -2]), {}, "token_ids: "),
        (Prompt(token_ids=[2**32]), {}, "token_ids: "),
        (Prompt("x"), {"temperature": "hot"}, "temperature: "),
        (Prompt("x"), {"top_k": 1.5}, "top_k: "),
        (Prompt("x"), {"seed": -1}, "seed: "),
        (Prompt("x"), {"stop": ["\ud800"]}, "stop: not valid Unicode"),
        (Prompt("x"), {"text": "y"}, "text: no such option"),
        (Prompt("x"), {"session": "y"}, "session: no such option, did you mean session_id"),
        (Prompt(messages=[{"role": "user"}]), {}, r"messages\[0\]\.content: got nothing"),
    ],
)
def test_what_does_not_fit_is_named(prompt, options, message):
    with pytest.raises(ValueError, match=message) as failure:
        build_request(prompt, options)
    assert "\n" not in str(failure.value)
