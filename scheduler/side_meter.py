"""How long requests wait for prefill and for decode, and how much the instances are used.

What is measured lately, averaged over a window: for the planner, which must not act on a moment.
"""

import collections
from collections.abc import Mapping
from dataclasses import dataclass

from memserve_jax.core.types import InstanceId, Role, Tier
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.member import Member
from scheduler.planner import Balance, Candidate, Side
from scheduler.state import State

_Life = tuple[InstanceId, int]  # with its epoch


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one instance said last."""

    heard_s: float
    prefill_s: float  # of steps that computed prompts, since its start
    filled: float  # of its rows or its memory, whichever is fuller


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """One look."""

    now_s: float
    prefill_s: float  # until a prefill that came now would begin
    gate_s: float  # of a wait at the gate because every decode instance has its fill
    num_between: int
    num_arrived: int
    seen: Mapping[_Life, _Seen]


class SideMeter:
    """Looks again and again. Lives in the asyncio loop."""

    def __init__(self, state: State, *, window_s: float, most_sequences: int):
        """Has seen nothing.

        Args:
          state: What the scheduler knows.
          window_s: Over which to average.
          most_sequences: That an instance runs at once, where it does not say.
        """
        self._state = state
        self._window_s = window_s
        self._most_sequences = most_sequences
        self._samples: collections.deque[_Sample] = collections.deque()

    def look(self, *, is_changing: bool) -> Balance:
        """Takes a look, and returns what the window shows.

        Args:
          is_changing: Whether an instance is between two roles.
        """
        members = self._state.cluster.members()
        self._samples.append(self._sample(members))
        now_s = self._samples[-1].now_s
        while len(self._samples) > 2 and self._samples[1].now_s <= now_s - self._window_s:
            self._samples.popleft()
        is_settled = (
            not is_changing
            and self._state.cluster.is_complete
            and all(member.is_routable for member in members)
        )
        sides = {
            role: Side(
                wait_s=wait_s,
                candidates=tuple(
                    self._candidate(member) for member in members if member.traits.role is role
                ),
            )
            for role, wait_s in (
                (Role.PREFILL, self._mean([sample.prefill_s for sample in self._samples])),
                (Role.DECODE, self._decode_wait_s()),
            )
        }
        return Balance(now_s=now_s, sides=sides, is_settled=is_settled)

    def _sample(self, members: list[Member]) -> _Sample:
        state = self._state
        turn_s = state.gate.turn_s()
        waits_for_decode = bool(turn_s) and state.rooms.decoders_are_full()
        return _Sample(
            now_s=state.clock.now_s(),
            prefill_s=state.rooms.least_queued_s() + (0.0 if waits_for_decode else turn_s),
            gate_s=turn_s if waits_for_decode else 0.0,
            num_between=state.flights.num_between,
            num_arrived=state.flights.num_arrived,
            seen={
                (member.traits.instance, member.traits.epoch): _Seen(
                    member.heard_s,
                    member.status.counters.prefill_actual_s,
                    self._filled(member.status),
                )
                for member in members
                if member.traits.role is not Role.COLOCATED
            },
        )

    def _decode_wait_s(self) -> float:
        """Returns the mean wait from the first token to the second: Little's law, L over lambda.

        Where nobody got through in the whole window, those that wait do so for all of it.
        """
        first, last = self._samples[0], self._samples[-1]
        gate_s = self._mean([sample.gate_s for sample in self._samples])
        num_between = self._mean([sample.num_between for sample in self._samples])
        num_arrived = max(1, last.num_arrived - first.num_arrived)
        return gate_s + num_between * (last.now_s - first.now_s) / num_arrived

    def _candidate(self, member: Member) -> Candidate:
        traits = member.traits
        life = traits.instance, traits.epoch
        seen = [sample.seen[life] for sample in self._samples if life in sample.seen]
        if traits.role is Role.DECODE:
            usage = self._mean([each.filled for each in seen])
        elif seen[-1].heard_s > seen[0].heard_s:
            busy_s = seen[-1].prefill_s - seen[0].prefill_s
            usage = min(1.0, max(0.0, busy_s / (seen[-1].heard_s - seen[0].heard_s)))
        else:
            usage = 1.0  # it has only just come: nobody knows
        return Candidate(
            instance=traits.instance,
            usage=usage,
            sequences=self._state.loads.sequences_at(traits.instance),
            indexed_blocks=self._state.trees.blocks_of(traits.instance),
        )

    def _filled(self, status: pb.InstanceStatus) -> float:
        rows = status.running / (status.max_running or self._most_sequences)
        hbm = [tier for tier in status.tiers if tier.tier == Tier.HBM and tier.num_blocks]
        return min(1.0, max([rows, *(tier.leased_blocks / tier.num_blocks for tier in hbm)]))

    @staticmethod
    def _mean(values: list[float] | list[int]) -> float:
        return sum(values) / len(values)
