"""All that one scheduler knows. Soft: what is lost in a restart is told again, or learnt anew."""

import logging
from dataclasses import dataclass

from memserve_jax.core.clock import Clock
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.credentials import PLAIN, Credentials
from memserve_jax.telemetry.metric import Kind
from memserve_jax.telemetry.scheduler_metrics import DEPARTURES, SCHEDULER_METRICS
from memserve_jax.telemetry.tally import Tally
from memserve_jax.telemetry.tracing import NO_TRACER, Tracer
from scheduler.bounded_log import BoundedLog
from scheduler.channels import Channels
from scheduler.cluster import Cluster, Departure
from scheduler.flights import Flights
from scheduler.gate import Gate
from scheduler.kv_feeds import KVFeeds
from scheduler.load_table import LoadTable
from scheduler.member import Traits
from scheduler.prompt_trees import PromptTrees
from scheduler.rooms import Rooms

HOPE_HEARTBEATS = 6  # in which an instance tells of what an answer suggests that it holds

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What routing, front door and control share. Lives in the asyncio loop."""

    clock: Clock  # of arrivals, heartbeats and trees
    cluster: Cluster  # who is there
    trees: PromptTrees  # who holds what
    feeds: KVFeeds  # what they tell of it
    flights: Flights  # what is in flight
    loads: LoadTable  # who is busy
    rooms: Rooms  # who has room for more
    gate: Gate  # who waits
    channels: Channels  # to the instances
    tally: Tally  # what happened, for the metrics
    credentials: Credentials = PLAIN  # of this process
    tracer: Tracer = NO_TRACER  # of requests

    def check(self) -> None:
        """Asserts the invariants of all of it."""
        self.cluster.check()
        self.trees.check()
        self.feeds.check()
        self.flights.check()
        self.gate.check()


def make_state(
    section: SchedulerSection,
    clock: Clock,
    *,
    model: str,
    credentials: Credentials = PLAIN,
    tracer: Tracer = NO_TRACER,
) -> State:
    """Returns the state of a scheduler of `model` that has heard of nobody.

    When a life of an instance is over, all that was known of it goes, and the requests that
    still need it are told.
    """
    flights = Flights(max_in_flight=section.max_in_flight)
    trees = _make_trees(section)
    loads = LoadTable(flights)
    channels = Channels(credentials)
    tally = Tally(metric for metric in SCHEDULER_METRICS.values() if metric.kind is not Kind.GAUGE)

    feeds = KVFeeds(trees, tally, is_wanted=section.freshness == "events")
    departures = BoundedLog(_log, clock, burst=section.max_instances)

    def left(traits: Traits, departure: Departure) -> None:
        instance = traits.instance
        departures.say(logging.WARNING, f"instance {instance} is gone: {departure}")
        tally.add(DEPARTURES, departure.name.lower())
        trees.forget(instance)
        feeds.forget(instance)
        loads.left(instance)
        if departure is not Departure.LEFT:
            flights.lose(instance, f"instance {instance} was lost: {departure}")
        channels.drop(traits.target)

    cluster = Cluster(
        model=model,
        clock=clock,
        timeout_s=section.heartbeat_timeout_s,
        on_left=left,
        max_members=section.max_instances,
    )
    rooms = Rooms(cluster, loads, trees, section, clock)
    gate = Gate(section, rooms, clock)
    flights.on_change = gate.call
    return State(
        clock=clock,
        cluster=cluster,
        trees=trees,
        feeds=feeds,
        flights=flights,
        loads=loads,
        rooms=rooms,
        gate=gate,
        channels=channels,
        tally=tally,
        credentials=credentials,
        tracer=tracer,
    )


def _make_trees(section: SchedulerSection) -> PromptTrees:
    return PromptTrees(
        ttl_s=section.prompt_tree_ttl_s,
        followed_ttl_s=min(section.prompt_tree_ttl_s, HOPE_HEARTBEATS * section.heartbeat_s),
        max_blocks=section.prompt_tree_blocks,
    )
