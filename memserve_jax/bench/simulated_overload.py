"""More requests than instances can take, in simulated time: the scheduler's own gate and router.

An instance serves one request after the other, each for a fixed time, however many wait: what the
scheduler does not hold back queues up there.
"""

import collections
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from memserve_jax.bench.timeline import Timeline
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.cost_file import prefill_cost_of
from memserve_jax.core.errors import OverloadedError
from memserve_jax.core.types import InstanceId, Request, RequestId, SamplingParams
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.gate import Ticket
from scheduler.policies import POLICIES
from scheduler.router import Plan, Router
from scheduler.state import make_state

MODEL = "simulated"
PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadShape:
    """What is simulated."""

    num_instances: int
    service_s: float  # of each request
    section: SchedulerSection

    @property
    def capacity(self) -> float:
        """Requests a second, at most."""
        return self.num_instances / self.service_s


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadLoad:
    """Poisson arrivals of tenants, at fixed shares of the rate."""

    rate: float  # requests a second, of all
    seconds: float
    shares: tuple[tuple[str, float], ...] = (("", 1.0),)
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How one request went."""

    tenant: str
    arrival_s: float
    ttft_s: float | None = None  # None: refused
    refused: str = ""  # why


class FixedServer:
    """One instance: a line, and somebody who is served."""

    def __init__(self, service_s: float, timeline: Timeline):
        self._service_s = service_s
        self._timeline = timeline
        self._line: collections.deque[Callable[[], None]] = collections.deque()
        self._is_busy = False

    def submit(self, on_done: Callable[[], None]) -> None:
        """Takes a request; `on_done` is called when it has been served."""
        self._line.append(on_done)
        self._next()

    def _next(self) -> None:
        if self._is_busy or not self._line:
            return
        self._is_busy = True
        self._timeline.after(self._service_s, self._done)

    def _done(self) -> None:
        self._is_busy = False
        on_done = self._line.popleft()
        on_done()
        self._next()


class OverloadedCluster:
    """A scheduler in front of fixed servers. `run` a load, once."""

    def __init__(self, shape: OverloadShape):
        """Registers the instances."""
        self.timeline = Timeline()
        self.outcomes: list[Outcome] = []
        section = shape.section
        self._section = section
        self.state = make_state(section, self.timeline.clock, model=MODEL)
        cost = prefill_cost_of(section.cost)
        self._router = Router(
            self.state, policy=POLICIES[section.policy], cost=cost, min_gain=section.policy_min_gain
        )
        self._servers: dict[InstanceId, FixedServer] = {}
        for number in range(shape.num_instances):
            instance = InstanceId(f"c{number}")
            self._servers[instance] = FixedServer(shape.service_s, self.timeline)
            self.state.cluster.register(_status(instance))

    def run(self, load: OverloadLoad) -> list[Outcome]:
        """Returns how each request of `load` went, once all have ended."""
        for tenant, request in _requests(load):
            self.timeline.at(request.arrival_s, lambda t=tenant, r=request: self._arrive(t, r))
        self._ticks(load.seconds)
        self.timeline.run(lambda: False)
        self.state.check()
        assert len(self.state.flights) == self.state.gate.num_waiting == 0, "someone is left"
        return self.outcomes

    def _ticks(self, seconds: float) -> None:
        """Looks at those who wait every heartbeat, as the scheduler does."""
        period_s = self._section.heartbeat_s
        for count in range(1, int(2 * seconds / period_s)):
            self.timeline.at(count * period_s, self.state.gate.expire)

    def _arrive(self, tenant: str, request: Request) -> None:
        outcome = Outcome(tenant=tenant, arrival_s=request.arrival_s)
        self.outcomes.append(outcome)
        flight = self.state.flights.admit(request.request_id)
        tickets: list[Ticket] = []

        def on_turn(error: OverloadedError | None) -> None:
            if error is None:
                plan = self._router.plan(request, self.state.gate.full())
                self.state.flights.depart(flight, plan.route, plan.work)
                self._servers[plan.route.prefill].submit(lambda: on_done(plan))
                return
            outcome.refused = error.reason
            self.timeline.after(0.0, leave)

        def on_done(plan: Plan) -> None:
            outcome.ttft_s = self.timeline.now_s - request.arrival_s
            self.state.flights.prefilled(flight)
            self._router.prefilled(plan)
            leave()

        def leave() -> None:
            for ticket in tickets:
                self.state.gate.leave(ticket, num_output=1)
            self.state.flights.land(flight)

        try:
            tickets.append(self.state.gate.enter(request, flight, on_turn, time_left_s=None))
        except OverloadedError as error:
            outcome.refused = error.reason
            self.state.flights.land(flight)


def _requests(load: OverloadLoad) -> Iterator[tuple[str, Request]]:
    random = np.random.default_rng(load.seed)
    num_requests = int(load.rate * load.seconds)
    times_s = np.sort(random.uniform(0, load.seconds, num_requests))
    names, shares = zip(*load.shares, strict=True)
    chosen = random.choice(len(names), num_requests, p=shares)
    for number, (time_s, index) in enumerate(zip(times_s.tolist(), chosen.tolist(), strict=True)):
        yield (
            names[index],
            Request(
                request_id=RequestId(f"r{number}"),
                session_id="",
                prompt_token_ids=tuple(random.integers(0, 1 << 31, PROMPT_TOKENS).tolist()),
                sampling=SamplingParams(max_tokens=1),
                cache_salt=names[index],
                arrival_s=time_s,
            ),
        )


def _status(instance: InstanceId) -> pb.InstanceStatus:
    return pb.InstanceStatus(
        instance=instance,
        epoch=1,
        role="colocated",
        state="serving",
        target="127.0.0.1:1",
        model=MODEL,
        tensor_parallelism=1,
        block_size_tokens=16,
        caching="off",
    )
