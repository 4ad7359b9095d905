"""The scheduler put together: one server, one asyncio loop, no state but what can be told again.

Health: `""` and ControlService are SERVING while the server listens, GenerateService while there
is a set of instances that a request can be routed to.
"""

import asyncio
import logging
from dataclasses import dataclass

import grpc
import grpc.aio

from memserve_jax.core.clock import Clock
from memserve_jax.core.config import Config
from memserve_jax.core.cost_model import CostModel
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import (
    add_ControlServiceServicer_to_server,
    add_GenerateServiceServicer_to_server,
)
from memserve_jax.proto.server import Health, add_standard_services, bind, make_server
from scheduler.channels import Channels
from scheduler.cluster import Cluster, Departure, Traits
from scheduler.control import Control
from scheduler.flights import Flights
from scheduler.front import FrontDoor
from scheduler.load_table import LoadTable
from scheduler.policies import POLICIES
from scheduler.prompt_trees import PromptTrees
from scheduler.router import Router

GENERATE = pb.DESCRIPTOR.services_by_name["GenerateService"].full_name
CONTROL = pb.DESCRIPTOR.services_by_name["ControlService"].full_name

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Running:
    """What there is between `start` and `stop`."""

    server: grpc.aio.Server
    health: Health
    watch: asyncio.Task[None]
    can_serve: bool = False


class SchedulerServer:
    """A scheduler, in any process. All of it lives in the asyncio loop that starts it."""

    def __init__(self, config: Config, card: ModelCard, tokenizer: Tokenizer, clock: Clock):
        """Listens to nothing yet.

        Args:
          config: `host`, `port` and the `scheduler` section are used.
          card: The model's ids, limits and sampling defaults.
          tokenizer: The model's.
          clock: Of heartbeats, trees and the times reported.
        """
        self._config = config
        section = config.scheduler
        self.flights = Flights(max_in_flight=section.max_in_flight)
        self.trees = PromptTrees(
            ttl_s=section.prompt_tree_ttl_s, max_blocks=section.prompt_tree_blocks
        )
        self.cluster = Cluster(
            clock=clock, timeout_s=section.heartbeat_timeout_s, on_left=self._left
        )
        self._loads = LoadTable(self.flights)
        self._channels = Channels()
        router = Router(
            cluster=self.cluster,
            trees=self.trees,
            loads=self._loads,
            policy=POLICIES[section.policy],
            cost=CostModel(
                fixed_s=section.cost.fixed_s,
                s_per_token=section.cost.s_per_token,
                s_per_token_pair=section.cost.s_per_token_pair,
            ),
            clock=clock,
        )
        self._front = FrontDoor(
            card=card,
            tokenizer=tokenizer,
            cluster=self.cluster,
            router=router,
            flights=self.flights,
            channels=self._channels,
            clock=clock,
        )
        self._control = Control(
            cluster=self.cluster,
            router=router,
            flights=self.flights,
            loads=self._loads,
            channels=self._channels,
            policy=section.policy,
            heartbeat_s=section.heartbeat_s,
            on_change=self._refresh_health,
        )
        self._running: _Running | None = None

    async def start(self) -> int:
        """Listens, and returns the port.

        Raises:
          ConfigError: the port is in use, or the host is not of this machine.
        """
        server = make_server()
        add_GenerateServiceServicer_to_server(self._front, server)
        add_ControlServiceServicer_to_server(self._control, server)
        health = await add_standard_services(server, (GENERATE, CONTROL))
        port = bind(server, self._config.host, self._config.port)
        await server.start()
        await health.set(CONTROL, serving=True)
        watch = asyncio.create_task(self._watch_heartbeats())
        self._running = _Running(server=server, health=health, watch=watch)
        return port

    async def stop(self, grace_s: float) -> None:
        """Takes no more requests, gives those there are `grace_s` to end, then cancels them.

        May be called again meanwhile, with a shorter grace.
        """
        running = self._running
        if running is None:
            return
        # Instances cannot be heard any more, so from now on their silence means nothing.
        running.watch.cancel()
        await running.health.shut_down()
        await running.server.stop(grace_s)
        await self._channels.close()
        self._running = None

    def check(self) -> None:
        """Asserts the invariants of all state."""
        self.cluster.check()
        self.trees.check()
        self.flights.check()

    async def _watch_heartbeats(self) -> None:
        loop, period_s = asyncio.get_running_loop(), self._config.scheduler.heartbeat_s
        while True:
            due_s = loop.time() + period_s
            await asyncio.sleep(period_s)
            late_s = loop.time() - due_s
            if late_s > period_s:  # this process was held up, and with it every heartbeat
                self.cluster.forgive(late_s)
            self.cluster.expire()
            await self._refresh_health()

    async def _refresh_health(self) -> None:
        running = self._running
        if running is not None and running.can_serve != self.cluster.can_serve:
            running.can_serve = self.cluster.can_serve
            await running.health.set(GENERATE, serving=running.can_serve)

    def _left(self, traits: Traits, departure: Departure) -> None:
        instance = traits.instance
        _log.warning("instance %s is gone: %s", instance, departure)
        self.trees.forget(instance)
        self._loads.left(instance)
        if departure is not Departure.LEFT:
            self.flights.lose(instance, f"instance {instance} was lost: {departure}")
        self._channels.drop(traits.target)
