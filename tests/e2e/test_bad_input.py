"""Bad input at a live cluster: one clear line, the right status, and everybody else served."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from memserve_jax.client import ClientError
from memserve_jax.core.config import load_config
from memserve_jax.core.errors import CheckpointError, ConfigError
from memserve_jax.launch.background import BackgroundCluster
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import InstanceServiceStub
from tests.helpers.cluster import PATIENCE_S, ServedCluster, running, tiny_config
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("llama3")
CONTEXT, VOCABULARY = 1024, 264
INVALID = "INVALID_ARGUMENT"


@pytest.fixture(scope="module", params=["colocated", "1p1d"])
def served(request: pytest.FixtureRequest) -> Iterator[ServedCluster]:
    config = tiny_config(GOLDEN.path, request.param, engine={"chunk_tokens": 32})
    with running(config) as cluster:
        yield cluster


def assert_serves(served: ServedCluster) -> None:
    answer = served.client.generate(
        token_ids=GOLDEN.prompts[2],
        max_tokens=24,
        temperature=0.0,
        ignore_eos=True,
        timeout_s=PATIENCE_S,
    )
    assert list(answer.token_ids) == GOLDEN.tokens[2]
    served.settle()


@pytest.mark.parametrize(
    ("options", "names", "value", "allowed"),
    [
        ({"max_tokens": 0}, "sampling.max_tokens", "0", ">= 1"),
        ({"max_tokens": -5}, "sampling.max_tokens", "-5", ">= 1"),
        ({"temperature": -0.5}, "sampling.temperature", "-0.5", ">= 0"),
        ({"temperature": float("nan")}, "sampling.temperature", "nan", "finite"),
        ({"top_p": 0.0}, "sampling.top_p", "0", "<= 1"),
        ({"top_k": -1}, "sampling.top_k", "-1", ">= 0"),
        ({"min_p": 1.5}, "sampling.min_p", "1.5", "0 to 1"),
        ({"repetition_penalty": 0.0}, "sampling.repetition_penalty", "0", "> 0"),
        ({"logprobs": 1000}, "sampling.logprobs", "1000", "0 to 20"),
        ({"stop": [""]}, "sampling.stop[0]", "''", "not empty"),
        ({"stop_token_ids": [VOCABULARY]}, "sampling.stop_token_ids[0]", "264", "0 to 263"),
        ({"request_id": "no spaces"}, "request_id", "no spaces", "1 to 128"),
        ({"token_ids": [1, VOCABULARY]}, "token_ids[1]", "264", "0 to 263"),
        ({"token_ids": []}, "token_ids", "0 tokens", "at least 1"),
        ({"token_ids": [1] * CONTEXT}, "token_ids", "1024 tokens", "at most 1023"),
        ({"token_ids": [1] * 100_000}, "token_ids", "100000 tokens", "at most 1023"),
    ],
)
def test_a_bad_request_names_field_value_and_what_is_allowed(
    served: ServedCluster, options: dict[str, Any], names: str, value: str, allowed: str
):
    given = {"token_ids": [1, 2, 3], "timeout_s": PATIENCE_S, **options}
    with pytest.raises(ClientError) as caught:
        served.client.generate(**given)
    assert caught.value.code == INVALID
    message = str(caught.value)
    assert names in message
    assert value in message
    assert allowed in message
    assert "\n" not in message
    assert_serves(served)


def test_text_that_is_no_utf8_is_refused_by_the_server(served: ServedCluster):
    field_text = bytes([3 << 3 | 2, 2, 0xFF, 0xFE])  # `text` of GenerateRequest
    with grpc.insecure_channel(served.cluster.target) as channel:
        call = channel.unary_stream("/memserve.v1.GenerateService/Generate")
        with pytest.raises(grpc.RpcError) as caught:
            list(call(field_text, timeout=PATIENCE_S))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert "UTF-8" in caught.value.details()  # type: ignore[attr-defined]
    assert_serves(served)


def test_bytes_that_are_no_message_are_refused(served: ServedCluster):
    with grpc.insecure_channel(served.cluster.target) as channel:
        call = channel.unary_stream("/memserve.v1.GenerateService/Generate")
        with pytest.raises(grpc.RpcError) as caught:
            list(call(b"\xff\xff\xff", timeout=PATIENCE_S))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert_serves(served)


def test_bytes_by_a_transport_that_is_not_there_are_refused(served: ServedCluster):
    for instance in served.client.status().instances:
        with grpc.insecure_channel(instance.target) as channel:
            stub: Any = InstanceServiceStub(channel)
            for transport in ("", "carrier pigeon", "tcp"):  # tcp tells nobody beforehand
                with pytest.raises(grpc.RpcError) as caught:
                    stub.Announce(pb.AnnounceRequest(transport=transport), timeout=PATIENCE_S)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
                words = f"transport: got {transport!r}, allowed: "
                assert caught.value.details().startswith(words)  # type: ignore[attr-defined]
    assert_serves(served)


def test_an_id_in_flight_is_refused_and_its_request_lives_on(served: ServedCluster):
    options = {"temperature": 0.0, "ignore_eos": True, "timeout_s": PATIENCE_S}
    stream = served.client.stream(
        token_ids=GOLDEN.prompts[2], request_id="mine", max_tokens=300, **options
    )
    first = next(stream)
    with pytest.raises(ClientError) as caught:
        served.client.generate(token_ids=[1, 2, 3], request_id="mine", max_tokens=2, **options)
    assert caught.value.code == "ALREADY_EXISTS"
    assert "mine" in str(caught.value)
    rest = [token for chunk in stream for token in chunk.token_ids]
    assert [*first.token_ids, *rest][:24] == GOLDEN.tokens[2]
    served.settle()


def test_a_prompt_that_no_pool_can_hold_is_refused():
    config = tiny_config(
        GOLDEN.path, "1p1d", mempool={"hbm_blocks": 4}, engine={"chunk_tokens": 32}
    )
    with running(config) as served:
        with pytest.raises(ClientError) as caught:
            served.client.generate(token_ids=[1] * 64, max_tokens=4, timeout_s=PATIENCE_S)
        assert caught.value.code == INVALID
        assert "64 tokens" in str(caught.value)
        answer = served.client.generate(  # fills the pool to its last token
            token_ids=GOLDEN.prompts[2],
            max_tokens=1000,
            temperature=0.0,
            ignore_eos=True,
            timeout_s=PATIENCE_S,
        )
        assert list(answer.token_ids)[:24] == GOLDEN.tokens[2]
        assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= 65
        served.settle()


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"topology": "3x"}, ConfigError, "topology: got '3x', allowed: colocated"),
        ({"caching": "pd_basic"}, ConfigError, "caching: got 'pd_basic', allowed with colocated"),
        ({"topology": "9p9d"}, ConfigError, "devices: the topology asks for 18"),
        ({"model": {"path": "/nowhere"}}, CheckpointError, "/nowhere"),
        ({"model": {"path": "org/model"}}, CheckpointError, "org/model"),
        ({"engine": {"max_context_tokens": 4096}}, ConfigError, "max_context_tokens: got 4096"),
        ({"host": "256.1.1.1"}, ConfigError, "host: '256.1.1.1'"),
    ],
)
def test_a_cluster_that_cannot_be_says_why(
    config: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error) as caught:
        BackgroundCluster(tiny_config(GOLDEN.path, is_apart=True, **config))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_in_use_says_so(served: ServedCluster):
    port = int(served.cluster.target.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port: {port} is in use"):
        BackgroundCluster(tiny_config(GOLDEN.path, port=port))
    assert_serves(served)


def test_an_unknown_key_is_met_with_the_nearest_known_one():
    with pytest.raises(ConfigError, match=r"mempool.hbm_block: unknown key, .* hbm_blocks"):
        load_config(None, overrides=["mempool.hbm_block=3"])
