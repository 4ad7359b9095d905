"""`memserve chat`, piped: every turn carries the whole conversation."""

import grpc
import pytest

from memserve_jax.proto import memserve_pb2 as pb


@pytest.fixture
def chat(memserve, server):
    return lambda *arguments, **more: memserve(
        "chat", "--target", server.target, *arguments, **more
    )


def said(request: pb.GenerateRequest) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in request.chat.messages]


def test_turns(chat, server):
    ended = chat("--system", "Be brief.", "--greedy", stdin=b"hello\n\nwhat?\n/exit\nnever\n")
    assert (ended.status, ended.out) == (0, "one zwei €\none zwei €\n")
    first, second = server.requests
    assert said(first) == [("system", "Be brief."), ("user", "hello")]
    assert said(second) == [*said(first), ("assistant", "one zwei €"), ("user", "what?")]
    assert first.session_id == second.session_id != ""
    assert first.sampling.HasField("temperature")


def test_a_given_session(chat, server):
    chat("--session", "mine", stdin="hé".encode())
    assert server.requests[0].session_id == "mine"
    assert said(server.requests[0]) == [("user", "hé")]


def test_not_utf8(chat):
    ended = chat(stdin=b"\xff\n")
    assert (ended.status, ended.err) == (2, "memserve chat: standard input is not UTF-8\n")


def test_a_model_without_a_chat_template(chat, server):
    server.replies["Generate"] = (grpc.StatusCode.INVALID_ARGUMENT, "chat: no chat template")
    ended = chat(stdin=b"hello\n")
    assert ended.status == 1
    assert ended.err == "memserve chat: INVALID_ARGUMENT: chat: no chat template\n"
