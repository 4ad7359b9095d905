"""The scheduler put together: one server, one asyncio loop, no state but what can be told again.

Health: `""` and ControlService are SERVING while the server listens, GenerateService while there
is a set of instances that a request can be routed to.
"""

import asyncio
import contextlib
from dataclasses import dataclass

import grpc
import grpc.aio

from memserve_jax.core.clock import Clock
from memserve_jax.core.config import Config
from memserve_jax.core.cost_file import log_differences, prefill_cost_of
from memserve_jax.core.credentials import credentials_of
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import (
    add_ControlServiceServicer_to_server,
    add_GenerateServiceServicer_to_server,
)
from memserve_jax.proto.server import (
    Health,
    add_standard_services,
    bind,
    check_address,
    make_server,
)
from memserve_jax.telemetry.process_telemetry import SILENT, ProcessTelemetry
from memserve_jax.telemetry.scheduler_metrics import SCHEDULER_METRICS
from scheduler.control import Control
from scheduler.front import FrontDoor
from scheduler.policies import POLICIES
from scheduler.readings import metrics_targets, readings
from scheduler.router import Router
from scheduler.state import make_state

GENERATE = pb.DESCRIPTOR.services_by_name["GenerateService"].full_name
CONTROL = pb.DESCRIPTOR.services_by_name["ControlService"].full_name

LAST_WORDS_S = 0.5  # for last messages to leave; then health watches are cancelled


@dataclass(slots=True, kw_only=True)
class _Running:
    """What there is between `start` and `stop`."""

    server: grpc.aio.Server
    health: Health
    watch: asyncio.Task[None]
    can_serve: bool = False
    ending: asyncio.Task[None] | None = None


class SchedulerServer:
    """A scheduler, in any process. All of it lives in the asyncio loop that starts it.

    Attributes:
      state: What it knows.
      planner: Moves instances between roles; None: it is off.
    """

    def __init__(
        self,
        config: Config,
        card: ModelCard,
        tokenizer: Tokenizer,
        clock: Clock,
        *,
        telemetry: ProcessTelemetry = SILENT,
    ):
        """Listens to nothing yet.

        Args:
          config: `host`, `port` and the sections `scheduler` and `security` are used.
          card: The model's ids, limits and sampling defaults.
          tokenizer: The model's.
          clock: Of heartbeats, trees and the times reported.
          telemetry: Where its metrics and spans go; not this server's to close.

        Raises:
          ConfigError: a file of certificates or keys that cannot be used.
        """
        self._config = config
        self._credentials = credentials_of(config.security)
        section = config.scheduler
        log_differences(config)
        self.state = make_state(
            section,
            clock,
            model=card.name,
            credentials=self._credentials,
            tracer=telemetry.tracer,
        )
        router = Router(
            self.state,
            policy=POLICIES[section.policy],
            cost=prefill_cost_of(section.cost),
            min_gain=section.policy_min_gain,
        )
        self._front = FrontDoor(self.state, router, section, card=card, tokenizer=tokenizer)
        self._control = Control(
            self.state,
            router,
            section,
            on_change=self._refresh_health,
            prepare=self._front.prepare,
            metrics_target=telemetry.target,
        )
        telemetry.show(SCHEDULER_METRICS.values(), lambda: readings(self.state))
        if telemetry.metrics is not None:
            telemetry.metrics.discover(lambda: [telemetry.target, *metrics_targets(self.state)])
        self.planner = self._control.planner
        self._running: _Running | None = None

    async def start(self) -> int:
        """Listens, and returns the port.

        Raises:
          ConfigError: the port is in use, the host is not of this machine, or others could
            reach it in plain text.
        """
        check_address(self._config.host, self._config.port, self._credentials)
        server = make_server(credentials=self._credentials)
        add_GenerateServiceServicer_to_server(self._front, server)
        add_ControlServiceServicer_to_server(self._control, server)
        health = await add_standard_services(server, (GENERATE, CONTROL))
        port = bind(server, self._config.host, self._config.port, self._credentials)
        await server.start()
        await health.set(CONTROL, serving=True)
        watch = asyncio.create_task(self._watch_heartbeats())
        self._running = _Running(server=server, health=health, watch=watch)
        if self.planner is not None:
            self.planner.start(self._config.scheduler.heartbeat_s)
        return port

    async def stop(self, grace_s: float) -> None:
        """Takes no more requests, gives those there are `grace_s` to end, then cancels them.

        A second call meanwhile can only shorten the grace. Instances are heard until the end.
        """
        running = self._running
        if running is None:
            return
        self._front.close()
        await running.health.shut_down()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.state.flights.when_idle()
        if running.ending is None:
            running.ending = asyncio.create_task(self._end(running, min(grace_s, LAST_WORDS_S)))
        await running.ending

    async def _end(self, running: _Running, grace_s: float) -> None:
        # Once only: gRPC's own `stop` crashes the process if two calls of it overlap.
        await running.server.stop(grace_s)
        running.watch.cancel()
        await asyncio.wait((running.watch,))
        if self.planner is not None:
            await self.planner.close()
        await self.state.channels.close()
        self._running = None

    async def _watch_heartbeats(self) -> None:
        loop, period_s = asyncio.get_running_loop(), self._config.scheduler.heartbeat_s
        while True:
            due_s = loop.time() + period_s
            await asyncio.sleep(period_s)
            late_s = loop.time() - due_s
            if late_s > period_s:  # this process was held up, and with it every heartbeat
                self.state.cluster.forgive(late_s)
            self.state.cluster.expire()
            self.state.gate.expire()
            await self._refresh_health()

    async def _refresh_health(self) -> None:
        running = self._running
        if running is not None and running.can_serve != self.state.cluster.can_serve:
            running.can_serve = self.state.cluster.can_serve
            await running.health.set(GENERATE, serving=running.can_serve)
