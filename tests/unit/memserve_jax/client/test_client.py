"""The client against a scripted server: answers, streams, errors, deadlines, cancellation."""

import grpc
import pytest

from memserve_jax.client import Client, ClientError
from memserve_jax.core.types import FinishReason
from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.fake_server import ANSWER, CLUSTER, INSTANCE, fake_server


@pytest.fixture
def server():
    with fake_server() as fake:
        yield fake


@pytest.fixture
def client(server):
    with Client(server.target) as made:
        yield made


def test_an_answer(client):
    answer = client.generate("hello")
    assert answer.token_ids == (7, 8, 9)
    assert answer.text == "one zwei €"
    assert answer.finish_reason is FinishReason.STOP
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens) == (5, 3)
    assert (answer.timing.jct_s, answer.timing.decode_instance) == (1.5, "d0")


def test_what_is_sent(client, server):
    client.generate(
        token_ids=[1, 2], max_tokens=3, temperature=0.0, seed=None, stop=["x"],
        session_id="s", cache_salt="c", priority=-1, request_id="r",
    )  # fmt: skip
    assert server.requests == [
        pb.GenerateRequest(
            request_id="r",
            session_id="s",
            token_ids=pb.TokenIds(ids=[1, 2]),
            sampling=pb.SamplingParams(max_tokens=3, temperature=0.0, stop=["x"]),
            cache_salt="c",
            priority=-1,
        )
    ]


def test_a_stream_comes_piece_by_piece(client):
    chunks = list(client.stream(messages=[{"role": "user", "content": "hi"}]))
    assert [chunk.text for chunk in chunks] == ["one ", "zwei €", ""]
    assert [chunk.first_index for chunk in chunks] == [0, 1, 3]
    assert [chunk.usage is None for chunk in chunks] == [True, True, False]


def test_dropping_a_stream_cancels_it(client, server):
    server.replies["Generate"] = [ANSWER[0], "hang"]
    stream = client.stream("hello")
    assert next(stream).token_ids == (7,)
    stream.close()
    assert server.cancelled.wait(30)


@pytest.mark.parametrize(
    ("own", "call", "low", "high"), [(50.0, None, 25, 100), (50.0, 9.0, 1, 18)]
)
def test_deadlines(server, own, call, low, high):
    with Client(server.target, timeout_s=own) as client:
        client.generate("hello", timeout_s=call)
    assert low < server.time_limits_s[0] <= high


def test_no_deadline_unless_asked_for(client, server):
    client.generate("hello")
    assert server.time_limits_s == [None]


def test_a_deadline_that_passes(client, server):
    server.replies["Generate"] = ["hang"]
    with pytest.raises(ClientError) as failure:
        client.generate("hello", timeout_s=0.2)
    assert failure.value.code == "DEADLINE_EXCEEDED"


def test_the_servers_own_words(client, server):
    server.replies["Generate"] = (grpc.StatusCode.INVALID_ARGUMENT, "sampling.top_p: got 2.0")
    with pytest.raises(ClientError) as failure:
        client.generate("hello", top_p=2.0)
    assert str(failure.value) == "INVALID_ARGUMENT: sampling.top_p: got 2.0"
    assert failure.value.code == "INVALID_ARGUMENT"


def test_nobody_there():
    with fake_server() as server:
        target = server.target
    with Client(target) as client, pytest.raises(ClientError, match=f"cannot reach {target}: "):
        client.status()


def test_somebody_behind_the_server_is_not_the_server(client, server):
    text = "c0 is unavailable: failed to connect to all addresses; try again"
    server.replies["Generate"] = (grpc.StatusCode.UNAVAILABLE, text)
    with pytest.raises(ClientError) as failure:
        client.generate("hello")
    assert failure.value.message == text


def test_a_stream_that_breaks_off(client, server):
    server.replies["Generate"] = list(ANSWER[:2])
    with pytest.raises(ClientError, match="DATA_LOSS: the stream broke off after 3 tokens"):
        client.generate("hello")


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        (None, {}, "prompt: got nothing"),
        ("x", {"token_ids": [1]}, "prompt: got text and token_ids"),
        ("x", {"max_token": 3}, "max_token: no such option, did you mean max_tokens?"),
        ("x", {"max_tokens": 2**40}, "max_tokens: "),
    ],
)
def test_bad_arguments_come_before_the_wire(client, server, prompt, arguments, message):
    with pytest.raises(ValueError, match=message):
        client.generate(prompt, **arguments)
    assert server.requests == []


def test_status_of_a_cluster(client):
    assert client.status() == CLUSTER


def test_status_and_quiesce_of_a_lone_instance():
    with fake_server(is_scheduler=False) as server, Client(server.target) as client:
        assert list(client.status().instances) == [INSTANCE]
        client.quiesce()
        assert server.requests == [pb.StatusRequest(), pb.QuiesceRequest()]


def test_status_of_a_failing_server(client, server):
    server.replies["ClusterStatus"] = (grpc.StatusCode.INTERNAL, "broken")
    with pytest.raises(ClientError, match="INTERNAL: broken"):
        client.status()


def test_drain_quiesce_and_route(client, server):
    client.drain("p0", timeout_s=7.0, force=True)
    client.quiesce()
    assert client.route("hello", session_id="s").target == "d0:1"
    assert server.requests == [
        pb.DrainRequest(instance="p0", timeout_s=7.0, force=True),
        pb.QuiesceRequest(),
        pb.GenerateRequest(text="hello", session_id="s"),
    ]


def test_quiesce_that_takes_too_long(client, server):
    server.replies["Quiesce"] = (grpc.StatusCode.DEADLINE_EXCEEDED, "3 leases")
    with pytest.raises(ClientError, match="DEADLINE_EXCEEDED: 3 leases"):
        client.quiesce()
