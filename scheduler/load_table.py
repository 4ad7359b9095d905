"""How busy each instance is: what we gave it, and what others did.

A heartbeat is up to a period old. So what we gave an instance is counted here as it comes and
goes, and a heartbeat only adds what exceeds it: work of clients that stream directly, or that
came through another scheduler.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from memserve_jax.core.cost_model import PrefillCost, PrefillWork
from memserve_jax.core.types import InstanceId, Role
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.cluster import Member
from scheduler.flights import Flights


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """What a heartbeat reported beyond what we had given."""

    prefill_tokens: int = 0
    sequences: int = 0


class LoadTable:
    """The load of every instance. Lives in the asyncio loop."""

    def __init__(self, flights: Flights):
        """Starts without heartbeats, above the requests of `flights`."""
        self._flights = flights
        self._excess: dict[InstanceId, tuple[Excess, Excess]] = {}  # the last two heartbeats'

    def heard(self, status: pb.InstanceStatus) -> None:
        """Notes a heartbeat."""
        instance = InstanceId(status.instance)
        given = self._flights.queued_at(instance).new_tokens
        known = self._flights.sequences_at(instance)
        now = Excess(
            prefill_tokens=max(0, status.queued_prefill_tokens - given),
            sequences=max(0, status.running + status.waiting - known),
        )
        _, before = self._excess.get(instance, (Excess(), Excess()))
        self._excess[instance] = before, now

    def left(self, instance: InstanceId) -> None:
        """Forgets an instance."""
        self._excess.pop(instance, None)

    def queued_at(self, instance: InstanceId) -> PrefillWork:
        """Returns the prefills that `instance` has not finished."""
        tokens = self._lasting(instance).prefill_tokens
        return self._flights.queued_at(instance) + PrefillWork(new_tokens=tokens)

    def sequences_at(self, instance: InstanceId) -> int:
        """Returns the requests that `instance` has, or that are on their way to it."""
        return self._flights.sequences_at(instance) + self._lasting(instance).sequences

    def _lasting(self, instance: InstanceId) -> Excess:
        """Returns what two heartbeats in a row reported.

        A request that ended while a heartbeat was on its way shows up in that one alone.
        """
        before, now = self._excess.get(instance, (Excess(), Excess()))
        return Excess(
            prefill_tokens=min(before.prefill_tokens, now.prefill_tokens),
            sequences=min(before.sequences, now.sequences),
        )


def costs(members: Iterable[Member], default: PrefillCost) -> dict[InstanceId, PrefillCost]:
    """Returns what a prefill costs at each instance.

    Instances of one role and tensor parallelism count as equally fast, at the best rate that any
    of them has reported: measured rates differ more by the prompts that came than by the
    hardware, and the noise would send all cold traffic to whoever looks fastest.

    Args:
      members: The instances.
      default: Of the model: fitted, or linear until it is.
    """
    members = list(members)
    best: dict[tuple[Role, int], float] = {}
    for member in members:
        group = _group(member)
        best[group] = max(best.get(group, 0.0), member.status.prefill_tokens_per_s)
    models = {
        group: default.on(tokens_per_s=rate, tp=group[1] or 1) for group, rate in best.items()
    }
    return {member.traits.instance: models[_group(member)] for member in members}


def _group(member: Member) -> tuple[Role, int]:
    return member.traits.role, member.status.tensor_parallelism
