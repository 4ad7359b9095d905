"""Schedulers know what caches hold: after a restart, round the front door, after eviction."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from memserve_jax.client import Client, ClientError
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceStub
from tests.helpers.cluster import running, tiny_config
from tests.helpers.processes import PATIENCE_S, ProcessCluster, process_cluster
from tests.helpers.tiny import tiny_checkpoint

GREEDY = {"temperature": 0.0, "ignore_eos": True}
SYSTEM = [7 + i % 90 for i in range(100)]  # six whole blocks that prompts have in common


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def until(holds: Callable[[], bool]) -> None:
    """Returns when it holds; what is not there yet may be refused."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(ClientError):
            if holds():
                return
        assert time.monotonic() < deadline_s, "it never came to that"


def cached_tokens(client: Client, token_ids: list[int], **options: object) -> int:
    """What the scheduler believes that the best instance holds of a prompt."""
    return client.route(token_ids=token_ids, **options).route.cached_tokens


def stream_directly(client: Client, token_ids: list[int], max_tokens: int) -> int:
    """Generates round the scheduler, by the route that it gives; returns the tokens streamed."""
    given = client.route(token_ids=token_ids)
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=token_ids),
        sampling=pb.SamplingParams(max_tokens=max_tokens, **GREEDY),
        route=given.route,
    )
    with grpc.insecure_channel(given.target) as channel:
        answers = list(GenerateServiceStub(channel).Generate(request, timeout=PATIENCE_S))
    return sum(len(answer.token_ids) for answer in answers)


@contextlib.contextmanager
def another_scheduler(cluster: ProcessCluster) -> Iterator[Client]:
    """Restarts c0 so that it reports to two schedulers; yields a client of the second."""
    arguments = [*cluster.scheduler.arguments]
    cluster.processes["scheduler2"] = other = type(cluster.scheduler)(
        "scheduler2", arguments, log_path=cluster.scheduler.log_path.with_name("scheduler2.log")
    )
    other.wait_until_ready()
    old = cluster["c0"]
    assert old.end()[0] == 0
    cluster.processes["c0"] = instance = type(old)(
        "c0", [*old.arguments, "--scheduler", other.target], log_path=old.log_path
    )
    instance.wait_until_ready()
    with Client(other.target) as client:
        yield client


@pytest.mark.slow
def test_a_restarted_scheduler_knows_again_and_two_agree(model: str, tmp_path: pathlib.Path):
    prompts = [[*SYSTEM, *[turn] * 40] for turn in range(3)]
    with (
        process_cluster(model, "colocated", folder=tmp_path) as cluster,
        another_scheduler(cluster) as other,
    ):
        for salt, prompt in zip(("", "", "red"), prompts, strict=True):
            cluster.client.generate(token_ids=prompt, cache_salt=salt, max_tokens=2, **GREEDY)

        def known(client: Client) -> list[int]:
            salts = ("", "", "red", "blue")
            return [
                cached_tokens(client, [*prompt, 1], cache_salt=salt)
                for salt, prompt in zip(salts, [*prompts, prompts[0]], strict=True)
            ]

        expected = [128, 128, 128, 0]  # of 141 tokens: the whole blocks but what is computed
        assert known(cluster.client) == expected, "its own answers have shown that at once"
        until(lambda: known(other) == expected)  # no answer has passed through this one
        cluster.kill("scheduler")
        cluster.restart("scheduler")
        until(lambda: known(cluster.client) == expected)
        answer = cluster.client.generate(token_ids=[*prompts[1], 1], max_tokens=2, **GREEDY)
        assert answer.usage.cached_tokens == 128
        stream_directly(other, [5] * 64, 2)
        until(lambda: cached_tokens(cluster.client, [*[5] * 64, 1]) == 64)
        until(lambda: cached_tokens(other, [*[5] * 64, 1]) == 64)
        assert "Traceback" not in cluster["c0"].log + cluster.scheduler.log


@pytest.mark.parametrize("topology", ["1p1d", pytest.param("colocated", marks=pytest.mark.slow)])
def test_a_direct_stream_teaches_and_eviction_is_forgotten(model: str, topology: str):
    first = [*SYSTEM, *[9] * 30]
    config = tiny_config(model, topology, mempool={"hbm_blocks": 20})
    with running(config) as served:
        assert stream_directly(served.client, first, 30) == 30
        history = [*first, 1]
        until(lambda: cached_tokens(served.client, history) == 128)
        served.cluster.check()
        for turn in range(4):  # 20 blocks hold two of these at most
            stream_directly(served.client, [20 + turn] * 130, 2)
        until(lambda: cached_tokens(served.client, history) == 0)
        until(lambda: cached_tokens(served.client, [*[23] * 130, 1]) == 128)


def test_responses_alone_do_not_show_what_went_round_the_scheduler(model: str):
    config = tiny_config(model, scheduler={"freshness": "responses"})
    with running(config) as served:
        assert stream_directly(served.client, SYSTEM, 2) == 2
        served.client.generate(token_ids=[3] * 64, max_tokens=2, **GREEDY)
        assert cached_tokens(served.client, [*[3] * 64, 1]) == 64
        assert cached_tokens(served.client, [*SYSTEM, 1]) == 0
