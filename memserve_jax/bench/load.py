"""The load generator: plays sessions against a server and times every answer.

Closed loop: so many sessions at any time, the next one starts when one ends. Open loop: sessions
arrive when they arrive, whatever the server does. Within a session a turn follows the answer
before it. One asyncio loop does it all; `LoadResult` says whether it could keep up.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from memserve_jax.bench.conversation import Conversation
from memserve_jax.bench.metrics import RequestRecord, Spread, spread
from memserve_jax.bench.stream import send
from memserve_jax.bench.workload import Session
from memserve_jax.core.clock import Clock, SystemClock
from memserve_jax.core.credentials import PLAIN, Credentials
from memserve_jax.core.errors import MemServeError
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto import memserve_pb2_grpc as pb_grpc
from memserve_jax.proto.server import open_channel

LAG_TICK_S = 0.02
MAX_CLIENT_CPU = 0.9  # of one core: beyond it the client distorts what it measures
MAX_LAG_OF_TTFT = 0.1


class TargetError(MemServeError):
    """The server to measure cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """How to play a workload. Exactly one of `concurrency` and `arrivals_s` is set."""

    target: str  # HOST:PORT
    credentials: Credentials = PLAIN  # shown there
    concurrency: int | None = None  # closed loop: sessions at a time
    arrivals_s: Iterator[float] | None = None  # open loop: when each session starts
    duration_s: float | None = None  # no request starts later than this; None: no limit
    think_time_s: float = 0.0  # between an answer and the session's next turn
    timeout_s: float = 300.0  # of each request
    connect_timeout_s: float = 5.0
    temperature: float = 0.0
    sampling_seed: int | None = None
    ignore_eos: bool = True
    cache_salt: str = ""
    id_prefix: str = "bench"  # of the request ids


@dataclass(slots=True)
class LoadResult:
    """What came of a run."""

    records: list[RequestRecord] = field(default_factory=list)  # in the order they ended
    num_abandoned: int = 0  # later turns of sessions in which a turn failed
    loop_lag_s: Spread | None = None  # how late the client's own loop woke up
    client_cpu: float = 0.0  # share of one core that the client used

    def warnings(self) -> list[str]:
        """Returns why the client's own slowness may be in the figures; empty if it is not."""
        found = []
        if self.client_cpu > MAX_CLIENT_CPU:
            found.append(
                f"the load generator used {self.client_cpu:.0%} of a core: it is the bottleneck;"
                " run several, with a lower load each"
            )
        ttft = spread(record.ttft_s for record in self.records if record.ttft_s is not None)
        if ttft and self.loop_lag_s and self.loop_lag_s.p99 > MAX_LAG_OF_TTFT * ttft.p50:
            found.append(
                f"the load generator's loop woke up to {self.loop_lag_s.p99 * 1e3:.1f} ms late"
                f" (p99), which is in the figures (TTFT p50 {ttft.p50 * 1e3:.1f} ms)"
            )
        return found


async def drive(
    plan: LoadPlan,
    sessions: Iterator[Session],
    *,
    clock: Clock | None = None,
    on_record: Callable[[RequestRecord], None] = lambda record: None,
) -> LoadResult:
    """Plays `sessions` until they or the plan's duration end; returns when all is answered.

    Args:
      plan: Where, how fast, with which sampling.
      sessions: May be endless if the plan has a duration.
      clock: Gives all times; the system's by default.
      on_record: Called with each finished request.

    Raises:
      TargetError: nothing answers at the target within `connect_timeout_s`.
    """
    async with _connected(plan) as stub:
        player = _Player(plan, stub, clock or SystemClock(), on_record)
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        lags_s: list[float] = []
        watch = asyncio.create_task(_watch_lag(lags_s))
        try:
            if plan.concurrency is not None:
                await _closed_loop(player, sessions, plan.concurrency)
            else:
                await _open_loop(player, sessions, plan.arrivals_s or itertools.repeat(0.0))
        finally:
            watch.cancel()
        elapsed_s = time.perf_counter() - wall_s
        player.result.client_cpu = (time.process_time() - cpu_s) / max(elapsed_s, 1e-9)
        player.result.loop_lag_s = spread(lags_s)
    return player.result


async def _closed_loop(player: "_Player", sessions: Iterator[Session], concurrency: int) -> None:
    async def work() -> None:
        while not player.is_over and (session := next(sessions, None)) is not None:
            await player.play(session)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(work())


async def _open_loop(
    player: "_Player", sessions: Iterator[Session], arrivals_s: Iterator[float]
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for arrival_s in arrivals_s:
            await player.sleep_until(arrival_s)
            if player.is_over or (session := next(sessions, None)) is None:
                return
            tasks.create_task(player.play(session))


class _Player:
    """Plays single sessions and collects their records. Lives on one asyncio loop."""

    def __init__(
        self,
        plan: LoadPlan,
        stub: pb_grpc.GenerateServiceStub,
        clock: Clock,
        on_record: Callable[[RequestRecord], None],
    ):
        self.result = LoadResult()
        self._plan, self._stub, self._on_record = plan, stub, on_record
        self._clock = _Since(clock)
        self._ids = itertools.count()

    @property
    def is_over(self) -> bool:
        """Whether the plan's duration has passed."""
        limit_s = self._plan.duration_s
        return limit_s is not None and self._clock.now_s() >= limit_s

    async def sleep_until(self, moment_s: float) -> None:
        """Sleeps until `moment_s` from the start, or the end of the plan if that is sooner."""
        if self._plan.duration_s is not None:
            moment_s = min(moment_s, self._plan.duration_s)
        await asyncio.sleep(max(0.0, moment_s - self._clock.now_s()))

    async def play(self, session: Session) -> None:
        """Plays a session to its end, its first failure or the end of the plan."""
        conversation = Conversation(session)
        for turn, content in enumerate(session.turns):
            if turn and self._plan.think_time_s:
                await asyncio.sleep(self._plan.think_time_s)
            if turn and self.is_over:
                return
            request = conversation.ask()
            self._fill_in(request, content.output_tokens)
            record = await send(
                self._stub, request, turn=turn, clock=self._clock, timeout_s=self._plan.timeout_s
            )
            self.result.records.append(record)
            self._on_record(record)
            if not record.is_ok:
                self.result.num_abandoned += len(session.turns) - turn - 1
                return
            conversation.hear(record.token_ids, record.text)

    def _fill_in(self, request: pb.GenerateRequest, output_tokens: int) -> None:
        request.request_id = f"{self._plan.id_prefix}-{next(self._ids)}"
        request.cache_salt = self._plan.cache_salt
        request.sampling.max_tokens = output_tokens
        request.sampling.temperature = self._plan.temperature
        request.sampling.ignore_eos = self._plan.ignore_eos
        if self._plan.sampling_seed is not None:
            request.sampling.seed = self._plan.sampling_seed


class _Since:
    """A clock that starts at 0."""

    def __init__(self, clock: Clock):
        self._clock, self._start_s = clock, clock.now_s()

    def now_s(self) -> float:
        return self._clock.now_s() - self._start_s


@asynccontextmanager
async def _connected(plan: LoadPlan) -> AsyncIterator[pb_grpc.GenerateServiceStub]:
    async with open_channel(plan.target, plan.credentials) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), plan.connect_timeout_s)
        except TimeoutError:
            raise TargetError(
                f"--target {plan.target}: nothing answers there within {plan.connect_timeout_s:g} s"
            ) from None
        yield pb_grpc.GenerateServiceStub(channel)


async def _watch_lag(lags_s: list[float]) -> None:
    """Appends, every tick, how many seconds late the loop ran this task."""
    while True:
        before_s = time.perf_counter()
        await asyncio.sleep(LAG_TICK_S)
        lags_s.append(time.perf_counter() - before_s - LAG_TICK_S)
