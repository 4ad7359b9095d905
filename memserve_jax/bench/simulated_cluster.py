"""A cluster in simulated time: the scheduler's own classes over instances without models.

Router, flights, load table, prompt trees, cost model, policies and, where it is wanted, the gate
are the ones that serve; only the instances and the clock are made up. Nothing is random here: one
workload, one result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from memserve_jax.bench.simulated_instance import (
    InstanceShape,
    SimulatedInstance,
    SimulatedSequence,
)
from memserve_jax.bench.timeline import Timeline
from memserve_jax.core.block_keys import BlockKeys, block_keys
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.errors import OverloadedError
from memserve_jax.core.overload_section import QueueSection, SloSection
from memserve_jax.core.types import CachingMode, InstanceId, Request, Role, Tier
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.flights import Flight
from scheduler.gate import Ticket
from scheduler.policies import POLICIES
from scheduler.router import Plan, Router
from scheduler.state import make_state

MODEL = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateShape:
    """Who waits at the scheduler, and who is refused."""

    queue: QueueSection = field(default_factory=QueueSection)
    slo: SloSection = field(default_factory=SloSection)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterShape:
    """What is simulated."""

    roles: tuple[Role, ...]
    instance: InstanceShape
    policy: str = "min_ttft"
    policy_min_gain: float = SchedulerSection().policy_min_gain
    kv_bytes_per_token: int = 131_072  # of an 8B model of today
    link_bytes_per_s: float = 10e9  # between two instances
    heartbeat_s: float = 0.5
    prompt_tree_ttl_s: float = 300.0
    gate: GateShape | None = None  # None: whoever comes is sent to an instance at once


@dataclass(slots=True, kw_only=True)
class SimulatedRecord:
    """How one request went; times in simulated seconds."""

    request: Request
    output_tokens: int
    prefill: InstanceId
    decode: InstanceId
    sequences_there: int  # at the prefill instance, before this one came
    cached_tokens: int = 0
    first_token_s: float = 0.0
    done_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        """Arrival to first token."""
        return self.first_token_s - self.request.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds a token after the first; None where there is one token only."""
        if self.output_tokens < 2:
            return None
        return (self.done_s - self.first_token_s) / (self.output_tokens - 1)


class SimulatedCluster:
    """One scheduler and its instances. `offer` requests, then `run`."""

    def __init__(self, shape: ClusterShape):
        """Registers an instance per role, called i000, i001 and so on."""
        self.timeline = Timeline()
        self.records: list[SimulatedRecord] = []
        self.refused: list[Request] = []
        self._shape = shape
        gate = shape.gate or GateShape()
        section = SchedulerSection(
            queue=gate.queue,
            slo=gate.slo,
            prompt_tree_ttl_s=shape.prompt_tree_ttl_s,
            heartbeat_s=shape.heartbeat_s,
            max_in_flight=1_000_000,  # nobody is held back here
        )
        self.state = make_state(section, self.timeline.clock, model=MODEL)
        self.router = Router(
            self.state,
            policy=POLICIES[shape.policy],
            cost=shape.instance.cost,
            min_gain=shape.policy_min_gain,
        )
        self.instances: dict[InstanceId, SimulatedInstance] = {}
        is_split = Role.COLOCATED not in shape.roles
        self._caching = CachingMode.PD_CACHING_3 if is_split else CachingMode.ON
        for number, role in enumerate(shape.roles):
            self._begin(InstanceId(f"i{number:03d}"), role, epoch=1)
        self._num_offered = self._num_done = 0
        self.timeline.after(shape.heartbeat_s, self._heartbeats)

    def offer(self, request: Request, output_tokens: int) -> None:
        """Has `request` arrive at its `arrival_s`; its answer takes `output_tokens`."""
        self._num_offered += 1
        self.timeline.at(request.arrival_s, lambda: self._arrive(request, output_tokens))

    def run(self) -> None:
        """Lets time pass until every request that was offered is answered."""
        self.timeline.run(lambda: self._num_done == self._num_offered)

    def recast(self, instance: InstanceId, role: Role) -> None:
        """Begins another life of an instance that has nothing left to do, its pool empty."""
        old = self.instances[instance]
        assert not self.state.flights.sequences_at(instance), f"{instance} has requests"
        self._begin(instance, role, epoch=old.epoch + 1)

    def check(self) -> None:
        """Asserts the invariants of scheduler and instances."""
        self.state.check()
        for instance in self.instances.values():
            instance.pool.check()

    def _begin(self, instance: InstanceId, role: Role, *, epoch: int) -> None:
        fresh = SimulatedInstance(instance, role, self._shape.instance, self.timeline, epoch=epoch)
        self.instances[instance] = fresh
        self.state.cluster.register(self._status(fresh))

    def _arrive(self, request: Request, output_tokens: int) -> None:
        flight = self.state.flights.admit(request.request_id)
        gate, tickets = self.state.gate, list[Ticket]()

        def leave() -> None:
            for ticket in tickets:
                gate.leave(ticket, num_output=output_tokens)

        def refuse() -> None:
            leave()
            self.refused.append(request)
            self.state.flights.land(flight)
            self.landed()

        def on_turn(error: OverloadedError | None) -> None:
            if error is None:
                self._send(request, output_tokens, flight, leave)
            else:  # later: the gate is at work
                self.timeline.after(0.0, refuse)

        if self._shape.gate is None:
            self._send(request, output_tokens, flight, leave)
            return
        try:
            tickets.append(gate.enter(request, flight, on_turn, time_left_s=None))
        except OverloadedError:
            refuse()

    def _send(
        self, request: Request, output_tokens: int, flight: Flight, leave: Callable[[], None]
    ) -> None:
        avoid = self.state.gate.full() if self._shape.gate else frozenset[InstanceId]()
        plan = self.router.plan(request, avoid)
        self.state.flights.depart(flight, plan.route, plan.work)
        record = SimulatedRecord(
            request=request,
            output_tokens=output_tokens,
            prefill=plan.prefill.instance,
            decode=plan.decode.instance,
            sequences_there=self.instances[plan.prefill.instance].num_sequences,
        )
        self.records.append(record)
        _Journey(self, plan, flight, record, leave).start()

    def _heartbeats(self) -> None:
        for instance in self.instances.values():
            status = self._status(instance)
            self.state.cluster.heartbeat(status)
            self.state.loads.heard(status)
        if self._shape.gate is not None:
            self.state.gate.expire()
        self.timeline.after(self._shape.heartbeat_s, self._heartbeats)

    def _status(self, instance: SimulatedInstance) -> pb.InstanceStatus:
        return pb.InstanceStatus(
            instance=instance.instance,
            epoch=instance.epoch,
            role=instance.role,
            state="serving",
            target="127.0.0.1:1",
            model=MODEL,
            tensor_parallelism=1,
            block_size_tokens=self._shape.instance.block_size_tokens,
            caching=self._caching,
            tiers=[pb.TierStatus(tier=Tier.HBM, num_blocks=instance.pool.num_blocks)],
            max_running=self._shape.instance.max_running,
            counters=pb.Counters(prefill_actual_s=instance.busy_s),
            running=instance.num_running,
            waiting=instance.num_waiting,
            queued_prefill_tokens=instance.queued.new_tokens,
        )

    def transfer_s(self, num_tokens: int) -> float:
        """Seconds to move the KV of so many tokens between two instances."""
        return num_tokens * self._shape.kv_bytes_per_token / self._shape.link_bytes_per_s

    def landed(self) -> None:
        """Counts a request that is answered."""
        self._num_done += 1


class _Journey:
    """One request from its route to its end, with what the front door learns on the way."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        plan: Plan,
        flight: Flight,
        record: SimulatedRecord,
        leave: Callable[[], None],
    ):
        self._cluster = cluster
        self._leave = leave
        self._plan = plan
        self._flight = flight
        self._record = record
        self._keys = block_keys(plan.request.prompt_token_ids, plan.decode.block_size_tokens)
        self._is_split = plan.prefill.instance != plan.decode.instance
        self._prefill = cluster.instances[plan.prefill.instance]  # in this life of it

    def start(self) -> None:
        """Sends the request to the instance that prefills."""
        at_once = self._is_split or self._record.output_tokens == 1
        self._submit(self._plan.prefill.instance, 1 if at_once else self._record.output_tokens)

    def _submit(self, instance: InstanceId, output_tokens: int, *, has_kv: bool = False) -> None:
        request = self._plan.request
        sequence = SimulatedSequence(
            salt=request.cache_salt,
            keys=self._keys,
            num_tokens=len(request.prompt_token_ids),
            output_tokens=output_tokens,
            has_prompt_kv=has_kv,
            on_token=self._token,
            on_done=self._done,
        )
        self._cluster.instances[instance].submit(sequence)

    def _token(self, sequence: SimulatedSequence) -> None:
        if sequence.num_output == 1:
            self._record.first_token_s = self._cluster.timeline.now_s
            self._record.cached_tokens = sequence.num_cached
            self._cluster.state.flights.prefilled(self._flight)
            self._cluster.router.prefilled(self._plan)
        else:
            self._cluster.state.flights.arrived(self._flight)
            self._cluster.router.arrived(self._plan)

    def _done(self, sequence: SimulatedSequence) -> BlockKeys:
        record = self._record
        if self._is_split and not sequence.has_prompt_kv and record.output_tokens > 1:
            moving_s = self._cluster.transfer_s(sequence.num_tokens)
            decode, tokens = self._plan.decode.instance, record.output_tokens
            self._cluster.timeline.after(
                moving_s, lambda: self._submit(decode, tokens, has_kv=True)
            )
            return self._keys
        record.done_s = self._cluster.timeline.now_s
        output = _made_up_output(self._plan.request, record.output_tokens)
        self._cluster.router.finished(self._plan, output)
        self._leave()
        self._cluster.state.flights.land(self._flight)
        self._cluster.landed()
        history = self._history(output)
        if self._is_split and sequence.has_prompt_kv:
            moving_s = self._cluster.transfer_s(record.output_tokens)
            self._cluster.timeline.after(
                moving_s, lambda: self._prefill.receive(self._plan.request.cache_salt, history)
            )
        return history

    def _history(self, output: Sequence[int]) -> BlockKeys:
        size = self._plan.decode.block_size_tokens
        prompt = self._plan.request.prompt_token_ids
        tail = [*prompt[len(self._keys) * size :], *output[:-1]]
        return self._keys + block_keys(tail, size)


def _made_up_output(request: Request, num_tokens: int) -> list[int]:
    """Returns an answer that no other request has."""
    digest = blake2b(request.request_id.encode(), digest_size=4).digest()
    first = int.from_bytes(digest, "little")
    return [(first + index) % (1 << 32) for index in range(num_tokens)]
