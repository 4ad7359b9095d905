"""`memserve scheduler` as a process: real sockets, fake instances, hostile clients."""

import asyncio
import collections
import contextlib
import math
import os
import pathlib
import random
import signal
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memserve_jax.core.embedded import CheckpointShape, make_checkpoint
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import ControlServiceStub, GenerateServiceStub
from memserve_jax.proto.server import open_channel
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import failure, in_loop, prompt, tokens_of

Code = grpc.StatusCode
ROOT = pathlib.Path(__file__).parent.parent.parent
MEMSERVE = [sys.executable, "-c", "from memserve_jax.cli import main; main()"]
CONTEXT, VOCABULARY = 512, 264


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"  # what the fakes say they serve
    shape = CheckpointShape(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=16,
        max_context_tokens=CONTEXT,
    )
    make_checkpoint(str(folder), shape, seed=0)
    return str(folder)


@contextlib.contextmanager
def memserve_scheduler(model: str, *arguments: str):
    """Runs the process until the block ends; yields it and its HOST:PORT."""
    command = [*MEMSERVE, "scheduler", "--model", model, "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready grpc=127.0.0.1:"), line
            yield process, line.strip().removeprefix("ready grpc=")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def target(model):
    patience = "--set", "scheduler.heartbeat_timeout_s=600"  # the fakes send no heartbeats
    haste = "--set", "scheduler.replay_wait_s=0.5"  # and none comes back
    with memserve_scheduler(model, *patience, *haste) as (process, target):
        yield target
        assert process.poll() is None, "the scheduler died on the way"


class Client:
    """Stubs to a scheduler."""

    def __init__(self, channel: grpc.aio.Channel):
        self.channel = channel
        self.generate = GenerateServiceStub(channel)  # pyright: ignore[reportArgumentType]
        self.control = ControlServiceStub(channel)  # pyright: ignore[reportArgumentType]

    async def answer(self, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
        return [message async for message in self.generate.Generate(request, timeout=20)]


@contextlib.asynccontextmanager
async def cluster(target: str, *fakes: FakeInstance):
    """Registers started `fakes`, yields a client, and takes them out again."""
    async with open_channel(target) as channel:
        for fake in fakes:
            await fake.register(target)
        yield Client(channel)
        for fake in fakes:
            await fake.deregister(target)


def test_it_never_loads_jax(model):
    with memserve_scheduler(model) as (process, _):
        maps = pathlib.Path(f"/proc/{process.pid}/maps")
        if maps.exists():
            assert "jaxlib" not in maps.read_text()
    check = (
        "import sys, memserve_jax.cli.scheduler, scheduler.process; "
        "sys.exit(any(name.split('.')[0] in ('jax', 'jaxlib', 'flax') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


def test_streaming_through_the_process(target):
    async def scenario():
        fakes = FakeInstance("p0", role="prefill"), FakeInstance("d0", role="decode")
        async with fakes[0] as p0, fakes[1] as d0, cluster(target, p0, d0) as client:
            d0.hold_before = {1}
            call = client.generate.Generate(pb.GenerateRequest(text="hello"), timeout=20)
            first = await call.read()
            assert list(first.token_ids) == [11]  # before the second exists
            d0.go_on.set()
            assert list((await call.read()).token_ids) == [12]
            last = await call.read()
            assert last.finish_reason == pb.LENGTH and last.usage.completion_tokens == 3
            assert 0 < last.timing.ttft_s <= last.timing.jct_s
            assert d0.requests[0].route.prefill_target == p0.status.target

    in_loop(scenario())


def test_cancelling_reaches_the_instance(target):
    async def scenario():
        async with FakeInstance("c0") as fake, cluster(target, fake) as client:
            fake.hold_before = {1}
            call = client.generate.Generate(prompt(1), timeout=20)
            await call.read()
            call.cancel()
            await fake.cancelled.wait()

    in_loop(scenario())


def test_a_vanished_client_is_as_good_as_a_cancel(target):
    async def scenario():
        async with FakeInstance("c0") as fake, cluster(target, fake):
            fake.hold_before = {1}
            channel = open_channel(target)
            call = GenerateServiceStub(channel).Generate(prompt(1))  # pyright: ignore[reportArgumentType]
            await call.read()
            await channel.close()
            await fake.cancelled.wait()

    in_loop(scenario())


def test_a_deadline_reaches_the_instance(target):
    async def scenario():
        async with FakeInstance("c0") as fake, cluster(target, fake) as client:
            fake.hold_before = {0}
            call = client.generate.Generate(prompt(1), timeout=1.0)
            await fake.holding.wait()
            assert (await failure(call.read()))[0] is Code.DEADLINE_EXCEEDED
            await fake.cancelled.wait()
            assert fake.deadlines_s[0] is not None and fake.deadlines_s[0] < 2.0

    in_loop(scenario())


def sampled(**fields) -> pb.GenerateRequest:
    return prompt(1, 2, sampling=pb.SamplingParams(**fields))


INVALID = [
    (pb.GenerateRequest(), "prompt"),
    (pb.GenerateRequest(text=""), "text"),
    (prompt(), "token_ids"),
    (prompt(1, VOCABULARY), "token_ids[1]"),
    (prompt(2**32 - 1), "token_ids[0]"),
    (prompt(*[1] * CONTEXT), "token_ids"),
    (pb.GenerateRequest(text="x" * 100_000), "text"),
    (pb.GenerateRequest(chat=pb.ChatMessages()), "chat.messages"),
    (sampled(max_tokens=0), "sampling.max_tokens"),
    (sampled(max_tokens=-5), "sampling.max_tokens"),
    (sampled(temperature=-0.5), "sampling.temperature"),
    (sampled(temperature=math.nan), "sampling.temperature"),
    (sampled(temperature=math.inf), "sampling.temperature"),
    (sampled(top_p=1.5), "sampling.top_p"),
    (sampled(top_k=-1), "sampling.top_k"),
    (sampled(min_p=2.0), "sampling.min_p"),
    (sampled(repetition_penalty=0.0), "sampling.repetition_penalty"),
    (sampled(presence_penalty=9.0), "sampling.presence_penalty"),
    (sampled(logprobs=-1), "sampling.logprobs"),
    (sampled(stop=[""]), "sampling.stop[0]"),
    (sampled(stop_token_ids=[VOCABULARY]), "sampling.stop_token_ids[0]"),
    (prompt(1, request_id="no spaces"), "request_id"),
    (prompt(1, request_id="x" * 129), "request_id"),
    (prompt(1, cache_salt="x" * 5000), "cache_salt"),
]


def test_invalid_arguments_are_named_and_nobody_else_notices(target):
    async def scenario():
        async with FakeInstance("c0") as fake, cluster(target, fake) as client:
            fake.hold_before = {1}
            neighbour = asyncio.create_task(client.answer(prompt(1)))
            await fake.holding.wait()
            for request, field in INVALID:
                for call in (client.answer(request), client.generate.Route(request)):
                    code, text = await failure(call)
                    assert code is Code.INVALID_ARGUMENT, (field, code, text)
                    assert text.startswith(f"{field}: got ") and "allowed: " in text, text
                    assert "\n" not in text
            fake.hold_before = set()
            fake.go_on.set()
            assert len(tokens_of(await neighbour)) == 3
            assert len(fake.requests) == 1

    in_loop(scenario())


def test_hostile_bytes(target):
    rng = random.Random(5)
    good = prompt(*range(50), cache_salt="salt", session_id="s").SerializeToString()

    def spoiled() -> bytes:
        raw = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(raw[: rng.randrange(len(raw) + 1)])

    async def scenario():
        async with FakeInstance("c0") as fake, cluster(target, fake) as client:
            services = "/memserve.v1.GenerateService/", "/memserve.v1.ControlService/"
            calls = [services[0] + "Route", services[1] + "Register", services[1] + "Heartbeat"]
            for index in range(600):
                call = client.channel.unary_unary(calls[index % 3])
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call(spoiled(), timeout=10)
            bad_text = client.channel.unary_stream(services[0] + "Generate")(b"\x1a\x02\xff\xfe")
            assert await failure(bad_text.read()) == (
                Code.INVALID_ARGUMENT,
                "text: got b'\\xff\\xfe', allowed: valid UTF-8",
            )
            assert (await failure(client.channel.unary_unary("/no/such")(b"")))[0] is (
                Code.UNIMPLEMENTED
            )
            assert len(tokens_of(await client.answer(prompt(1)))) == 3
            reply = await client.control.ClusterStatus(pb.StatusRequest(), timeout=10)
            assert [each.instance for each in reply.instances] == ["c0"]

    in_loop(scenario())


def test_the_same_id_twice(target):
    async def scenario():
        async with FakeInstance("c0") as fake, cluster(target, fake) as client:
            fake.hold_before = {1}
            first = asyncio.create_task(client.answer(prompt(1, request_id="twin")))
            await fake.holding.wait()
            code, text = await failure(client.answer(prompt(1, request_id="twin")))
            assert code is Code.ALREADY_EXISTS and "twin" in text
            fake.go_on.set()
            assert len(tokens_of(await first)) == 3

    in_loop(scenario())


def test_no_instance_and_a_dead_one(target):
    async def scenario():
        async with FakeInstance("c0") as fake, cluster(target, fake) as client:
            fake.hold_before = {1}
            call = client.generate.Generate(prompt(1), timeout=20)
            await call.read()
            await fake.die()
            code, text = await failure(call.read())
            assert code is Code.UNAVAILABLE and "instance c0 at" in text and "\n" not in text
        async with cluster(target) as client:
            code, text = await failure(client.answer(prompt(1)))
            assert code is Code.UNAVAILABLE and "no instance" in text

    in_loop(scenario())


def test_drain(target):
    async def scenario():
        names = FakeInstance("c0"), FakeInstance("c1")
        async with names[0] as c0, names[1] as c1, cluster(target, c0, c1) as client:
            await client.control.Drain(pb.DrainRequest(instance="c0", timeout_s=20), timeout=30)
            assert len(c0.drains) == 1
            for token in range(10):
                await client.answer(prompt(token))
            assert (len(c0.requests), len(c1.requests)) == (0, 10)
            code, text = await failure(client.control.Drain(pb.DrainRequest(instance="c1")))
            assert code is Code.FAILED_PRECONDITION and "force" in text

    in_loop(scenario())


def test_cold_traffic_splits_evenly_and_groups_stay(target):
    """The load that a famous router sent to one of two idle workers."""

    async def scenario():
        names = FakeInstance("c0"), FakeInstance("c1")
        async with names[0] as c0, names[1] as c1, cluster(target, c0, c1) as client:
            homes = collections.defaultdict(set)
            for turn in range(640):
                group = turn % 64
                ids = [group, *[group] * 40, turn % 200]
                *_, last = await client.answer(prompt(*ids))
                homes[group].add(last.timing.decode_instance)
            split = len(c0.requests), len(c1.requests)
            assert min(split) >= 272, split  # 15 % off an even split
            assert all(len(home) == 1 for home in homes.values())

    in_loop(scenario(), timeout_s=60)


def test_a_signal_lets_answers_end(model):
    async def scenario(process, target):
        async with FakeInstance("c0") as fake, open_channel(target) as channel:
            await fake.register(target)
            fake.hold_before = {1}
            answer = asyncio.create_task(Client(channel).answer(prompt(1)))
            await fake.holding.wait()
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert process.poll() is None
            fake.go_on.set()
            assert len(tokens_of(await answer)) == 3
            await failure(watch.read())  # an open watch does not hold it up

    with memserve_scheduler(model) as (process, target):
        in_loop(scenario(process, target))
        assert process.wait(timeout=20) == 0


def test_a_second_signal_ends_it_at_once(model):
    async def scenario(process, target):
        async with FakeInstance("c0") as fake, open_channel(target) as channel:
            await fake.register(target)
            fake.hold_before = {1}
            answer = asyncio.create_task(Client(channel).answer(prompt(1)))
            await fake.holding.wait()
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError):
                await answer
            await fake.cancelled.wait()

    with memserve_scheduler(model) as (process, target):
        in_loop(scenario(process, target))
        assert process.wait(timeout=20) == 0


def test_wrong_command_lines_exit_2_with_one_line(model, tmp_path, target):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("scheduler: {polcy: min_ttft}\n")
    port = target.rpartition(":")[2]
    cases = [
        (["--config", str(wrong)], "scheduler.polcy: unknown key, did you mean policy?"),
        (["--model", model, "--port", port], f"port: {port} is in use on 127.0.0.1"),
    ]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    running = [
        subprocess.Popen(
            [*MEMSERVE, "scheduler", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments, _ in cases
    ]
    for process, (arguments, words) in zip(running, cases, strict=True):
        out, err = process.communicate(timeout=60)
        lines = [line for line in err.splitlines() if " I scheduler" not in line]
        assert process.returncode == 2, (arguments, err)
        assert out == "" and len(lines) == 1 and words in lines[0], (arguments, err)
