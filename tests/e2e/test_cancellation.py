"""Requests that end before their time: hang-ups, deadlines, a prefill instance that goes."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from memserve_jax.client import ClientError
from memserve_jax.core.types import InstanceId
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceStub
from tests.helpers.cluster import (
    PATIENCE_S,
    ServedCluster,
    running,
    tiny_config,
)
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("llama3")
LONG, SHORT = GOLDEN.prompts[-1], GOLDEN.prompts[2]  # 700 and 16 tokens
ENDLESS = {"max_tokens": 300, "temperature": 0.0, "ignore_eos": True, "timeout_s": PATIENCE_S}


@pytest.fixture(scope="module", params=["colocated", "1p1d"])
def served(request: pytest.FixtureRequest) -> Iterator[ServedCluster]:
    config = tiny_config(
        GOLDEN.path, request.param, mempool={"hbm_blocks": 72}, engine={"chunk_tokens": 32}
    )
    with running(config) as cluster:
        yield cluster


def answer_is_right(served: ServedCluster) -> bool:
    answer = served.client.generate(
        token_ids=SHORT, max_tokens=24, temperature=0.0, ignore_eos=True, timeout_s=PATIENCE_S
    )
    return list(answer.token_ids) == GOLDEN.tokens[2]


@pytest.mark.parametrize("num_chunks", [0, 1, 2, 20])
def test_a_client_that_hangs_up_leaves_nothing(served: ServedCluster, num_chunks: int):
    stream = served.client.stream(token_ids=LONG, **ENDLESS)
    for _ in itertools.islice(stream, num_chunks):
        pass
    stream.close()
    served.settle()
    assert answer_is_right(served)
    served.settle()


def test_many_that_hang_up_at_once_leave_nothing(served: ServedCluster):
    streams = [served.client.stream(token_ids=LONG[index:], **ENDLESS) for index in range(6)]
    first = [next(stream) for stream in streams[:1]]  # the others wait for memory or a row
    assert first[0].first_index == 0
    for stream in streams:
        stream.close()
    served.settle()
    assert answer_is_right(served)


def test_a_deadline_ends_an_answer_and_frees_its_blocks(served: ServedCluster):
    assert answer_is_right(served)  # what follows is compiled
    options = {**ENDLESS, "timeout_s": 0.15}
    with pytest.raises(ClientError) as caught:
        list(served.client.stream(token_ids=LONG, **options))
    assert caught.value.code == "DEADLINE_EXCEEDED"
    served.settle()
    assert answer_is_right(served)


def test_a_cancelled_request_is_counted(served: ServedCluster):
    before = sum(counters.cancelled for counters in served.counters().values())
    stream = served.client.stream(token_ids=SHORT, **ENDLESS)
    next(stream)
    stream.close()
    after = sum(counters.cancelled for counters in served.counters().values())
    assert after > before


def test_a_direct_stream_is_the_same_answer_and_cancels_as_well(served: ServedCluster):
    message = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=SHORT),
        sampling=pb.SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True),
    )
    where = served.client.route(token_ids=SHORT)
    message.route.CopyFrom(where.route)
    with grpc.insecure_channel(where.target) as channel:
        stub: Any = GenerateServiceStub(channel)
        token_ids = [
            token
            for response in stub.Generate(message, timeout=PATIENCE_S)
            for token in response.token_ids
        ]
        assert token_ids == GOLDEN.tokens[2]
        message.sampling.max_tokens = 300
        call = stub.Generate(message, timeout=PATIENCE_S)
        next(call)
        call.cancel()
        served.settle()


def test_a_prefill_instance_that_dies_midway_frees_the_decoder():
    config = tiny_config(
        GOLDEN.path,
        "2p1d",
        engine={"chunk_tokens": 32},
        scheduler={"heartbeat_timeout_s": 3.0, "max_replays": 0},  # what one attempt leaves
    )
    with running(config) as served:
        victim = InstanceId(served.client.route(token_ids=LONG).route.prefill_instance)
        prefiller, gate = served.cluster.instances[victim], threading.Event()
        prefiller.loop.post(lambda: gate.wait(PATIENCE_S))  # it gets the request, and no further
        with ThreadPoolExecutor(2) as pool:
            answer = pool.submit(lambda: served.client.generate(token_ids=LONG, **ENDLESS))
            while not prefiller.streams.num_open:
                assert not answer.done(), answer.result()
            death = pool.submit(served.cluster.kill, victim)
            with pytest.raises(ClientError) as caught:
                answer.result(PATIENCE_S)
            gate.set()
            death.result(PATIENCE_S)
        assert caught.value.code == "UNAVAILABLE"
        while len(served.client.status().instances) > 2:
            pass
        assert answer_is_right(served)  # by the prefill instance that is left
