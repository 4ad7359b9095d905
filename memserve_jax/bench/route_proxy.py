"""What the way through the scheduler costs, beside a bare relay and a direct connection.

Real processes on this machine: an instance that answers at once (`proxy_process`), the scheduler
as `memserve scheduler` starts it, and a relay over grpc.aio that passes bytes on and does nothing
else. Each round measures every way once, in turn, so that what else the machine does hits all.
CPU seconds are of the process in the middle alone, read from the kernel.
"""

import asyncio
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from memserve_jax.bench.local_server import LocalProcess, local_process
from memserve_jax.bench.proxy_process import GENERATE
from memserve_jax.core.embedded import embedded_model_path
from memserve_jax.core.errors import MemServeError
from memserve_jax.core.model_card import load_card
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceStub
from memserve_jax.proto.server import open_channel

WAYS = ("direct", "relay", "scheduler")
_MODULE = "memserve_jax.bench.proxy_process"
_NUM_PREFIXES = 64
_WARM_UP = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyOptions:
    """How much to measure."""

    rounds: int = 5
    latency_requests: int = 200  # one at a time
    load_requests: int = 256
    concurrency: int = 16
    prompt_tokens: int = 256  # 1 KB of token ids
    output_tokens: int = 64
    tokens_per_message: tuple[int, ...] = (1, 4, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayTime:
    """One way of a request, medians over rounds, and how far rounds were apart."""

    way: str
    tokens_per_message: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    added_ttft_p50_ms: float  # beyond the direct way, of the same round
    requests_per_s: float
    tokens_per_s: float
    messages_per_request: float  # that reached the client
    cpu_ms_per_request: float  # of an answer of one message
    cpu_us_per_message: float  # of each further message that the instance sent
    cpu_ms_per_1k_tokens: float  # of a whole answer
    spread_cpu_us_per_message: float  # highest less lowest round


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectPath:
    """`Route`, then the client streams from the instance."""

    requests: int
    tokens: int
    route_cpu_ms_per_request: float  # at the scheduler
    streaming_cpu_us_per_token: float  # at the scheduler, while the tokens flow
    idle_cpu_us_per_token: float  # what it uses in as many seconds without requests


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyReport:
    """All ways."""

    ways: tuple[WayTime, ...]
    direct_path: DirectPath

    def ratios(self) -> dict[str, float]:
        """Returns the scheduler's cost over the bare relay's, at one token a message."""
        by_way = {each.way: each for each in self.ways if each.tokens_per_message == 1}
        ours, bare = by_way["scheduler"], by_way["relay"]
        return {
            "added_ttft_p50": ours.added_ttft_p50_ms / bare.added_ttft_p50_ms,
            "cpu_per_message": ours.cpu_us_per_message / bare.cpu_us_per_message,
            "cpu_per_request": ours.cpu_ms_per_request / bare.cpu_ms_per_request,
        }


@dataclass(slots=True, kw_only=True)
class _Round:
    """One round of one way at one size of message."""

    ttfts_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    num_messages: int = 0
    short_cpu_s: float = 0.0
    long_cpu_s: float = 0.0


class _Client:
    """Sends requests and counts what comes, without reading it."""

    def __init__(self, options: ProxyOptions):
        self._options = options
        self._num_sent = 0

    def request(self, output_tokens: int, tokens_per_message: int) -> pb.GenerateRequest:
        """Returns a request of the next prefix group, with an end of its own."""
        number, self._num_sent = self._num_sent, self._num_sent + 1
        ids = [1 + (number % _NUM_PREFIXES * 7 + at) % 250 for at in range(self._prompt_tokens)]
        ids[-1] = 1 + number // _NUM_PREFIXES % 250
        return pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=ids),
            priority=tokens_per_message,  # what the fake instance goes by
            sampling=pb.SamplingParams(max_tokens=output_tokens, temperature=0.0),
        )

    async def play(
        self, target: str, num_requests: int, concurrency: int, size: tuple[int, int]
    ) -> _Round:
        """Sends requests of `size` (output tokens, tokens a message) and waits for all answers."""
        played = _Round()
        async with open_channel(target) as channel:
            call = channel.unary_stream(GENERATE)

            async def one_after_another(count: int) -> None:
                for _ in range(count):
                    message = self.request(*size).SerializeToString()
                    sent_s, first = time.perf_counter(), True
                    async for _ in call(message):
                        if first:
                            played.ttfts_ms.append((time.perf_counter() - sent_s) * 1e3)
                            first = False
                        played.num_messages += 1

            await one_after_another(_WARM_UP if concurrency == 1 else 1)
            played.ttfts_ms, played.num_messages = [], 0
            started_s = time.perf_counter()
            share = num_requests // concurrency
            await asyncio.gather(*(one_after_another(share) for _ in range(concurrency)))
            played.seconds = time.perf_counter() - started_s
        return played

    @property
    def _prompt_tokens(self) -> int:
        return self._options.prompt_tokens


class ProxyBench:
    """Measures with processes that are up; `proxy_bench` starts them."""

    def __init__(self, options: ProxyOptions, processes: Mapping[str, LocalProcess]):
        self._options = options
        self._processes = processes
        self._client = _Client(options)

    def measure(self, told: Callable[[str], None]) -> ProxyReport:
        """Returns what every way costs; calls `told` before each round."""
        options = self._options
        rounds: dict[tuple[str, int], list[_Round]] = {}
        for number in range(options.rounds):
            told(f"round {number + 1} of {options.rounds}")
            for each in options.tokens_per_message:
                for way in WAYS:
                    rounds.setdefault((way, each), []).append(self._round(way, each))
        told("Route, then directly")
        return ProxyReport(
            ways=tuple(
                self._way(way, each, rounds) for each in options.tokens_per_message for way in WAYS
            ),
            direct_path=asyncio.run(self._direct_path()),
        )

    def _round(self, way: str, tokens_per_message: int) -> _Round:
        options, process = self._options, self._processes[way]
        size = (options.output_tokens, tokens_per_message)
        play = self._client.play
        first = asyncio.run(play(process.target, options.latency_requests, 1, size))
        before_s = cpu_s(process.pid)
        num, concurrency = options.load_requests, options.concurrency
        asyncio.run(play(process.target, num, concurrency, (1, 1)))
        between_s = cpu_s(process.pid)
        loaded = asyncio.run(play(process.target, num, concurrency, size))
        loaded.short_cpu_s = between_s - before_s
        loaded.long_cpu_s = cpu_s(process.pid) - between_s
        loaded.ttfts_ms = first.ttfts_ms
        return loaded

    def _way(
        self, way: str, tokens_per_message: int, rounds: Mapping[tuple[str, int], list[_Round]]
    ) -> WayTime:
        options, own = self._options, rounds[way, tokens_per_message]
        direct = rounds["direct", tokens_per_message]
        num = options.load_requests
        sent = -(-options.output_tokens // tokens_per_message)  # messages, by the instance
        per_message = [
            (each.long_cpu_s - each.short_cpu_s) / num / max(1, sent - 1) * 1e6 for each in own
        ]
        seconds = statistics.median(each.seconds for each in own)
        return WayTime(
            way=way,
            tokens_per_message=tokens_per_message,
            ttft_p50_ms=_middle(np.percentile(each.ttfts_ms, 50) for each in own),
            ttft_p99_ms=_middle(np.percentile(each.ttfts_ms, 99) for each in own),
            added_ttft_p50_ms=_middle(
                np.percentile(each.ttfts_ms, 50) - np.percentile(bare.ttfts_ms, 50)
                for each, bare in zip(own, direct, strict=True)
            ),
            requests_per_s=num / seconds,
            tokens_per_s=num * options.output_tokens / seconds,
            messages_per_request=_middle(each.num_messages / num for each in own),
            cpu_ms_per_request=_middle(each.short_cpu_s / num * 1e3 for each in own),
            cpu_us_per_message=_middle(per_message),
            cpu_ms_per_1k_tokens=_middle(
                each.long_cpu_s / num / options.output_tokens * 1e6 for each in own
            ),
            spread_cpu_us_per_message=max(per_message) - min(per_message),
        )

    async def _direct_path(self) -> DirectPath:
        options, scheduler = self._options, self._processes["scheduler"]
        num = options.load_requests
        before_s = cpu_s(scheduler.pid)
        routed: list[tuple[str, pb.GenerateRequest]] = []
        async with open_channel(scheduler.target) as channel:
            stub = GenerateServiceStub(channel)  # pyright: ignore[reportArgumentType]
            for _ in range(num):
                request = self._client.request(options.output_tokens, 1)
                reply = await stub.Route(request)
                request.route.CopyFrom(reply.route)
                routed.append((reply.target, request))
        route_s = cpu_s(scheduler.pid) - before_s
        before_s, started_s = cpu_s(scheduler.pid), time.perf_counter()
        async with open_channel(routed[0][0]) as channel:
            call = channel.unary_stream(GENERATE)
            for target, request in routed:
                assert target == routed[0][0], "one instance, and another target"
                async for _ in call(request.SerializeToString()):
                    pass
        streaming_s, seconds = cpu_s(scheduler.pid) - before_s, time.perf_counter() - started_s
        before_s = cpu_s(scheduler.pid)
        await asyncio.sleep(seconds)  # its heartbeats go on
        idle_s = cpu_s(scheduler.pid) - before_s
        tokens = num * options.output_tokens
        return DirectPath(
            requests=num,
            tokens=tokens,
            route_cpu_ms_per_request=route_s / num * 1e3,
            streaming_cpu_us_per_token=streaming_s / tokens * 1e6,
            idle_cpu_us_per_token=idle_s / tokens * 1e6,
        )


@contextmanager
def proxy_bench(options: ProxyOptions, folder: pathlib.Path) -> Iterator[ProxyBench]:
    """Starts the processes, whose logs go to `folder`, and ends them.

    Raises:
      ServerFailedError: one of them did not come up.
      MemServeError: this machine does not say what CPU time a process has used.
    """
    cpu_s(os.getpid())
    model = load_card(embedded_model_path()).name
    command = (sys.executable, "-m", _MODULE)
    scheduler = (sys.executable, "-m", "memserve_jax.cli", "scheduler", "--port", "0")
    with ExitStack() as stack:

        def start(name: str, *words: str) -> LocalProcess:
            path = folder / f"{name}.log"
            return stack.enter_context(local_process(words, log_path=path))

        middle = start("scheduler", *scheduler)
        there = ("instance", "--model", model, "--scheduler", middle.target)
        direct = start("instance", *command, *there)
        relay = start("relay", *command, "relay", "--to", direct.target)
        asyncio.run(_until_registered(middle.target))
        yield ProxyBench(options, {"direct": direct, "relay": relay, "scheduler": middle})


async def _until_registered(target: str, *, timeout_s: float = 30.0) -> None:
    async with open_channel(target) as channel:
        stub = GenerateServiceStub(channel)  # pyright: ignore[reportArgumentType]
        probe = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]))
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                await stub.Route(probe)
                return
            except Exception:  # of gRPC, which benches do not import; the last one is raised
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(0.05)


def cpu_s(pid: int) -> float:
    """Returns the CPU seconds that a process has used, in user and in kernel mode.

    Raises:
      MemServeError: this machine does not say: only Linux does.
    """
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        raise MemServeError(f"/proc/{pid}/stat: cannot read: CPU time is read on Linux") from None
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _middle(values: Iterable[float]) -> float:
    return float(statistics.median(values))
