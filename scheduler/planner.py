"""Whether an instance should change from prefill to decode, or back: a pure decision.

One moves where a side's queue predicts that promises are missed while the other side idles. The
same thresholds do not send it back: who gives must be little used even without the one it gives,
a shortage has to last, and one move is followed by a pause.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.types import InstanceId, Role

OTHER = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}


class Verdict(enum.StrEnum):
    """What is decided, and why."""

    ENOUGH = "enough"  # neither side is short
    BUSY = "busy"  # one is, and the other has none to spare
    LAST = "last"  # one is, and the other has a single instance
    UNSETTLED = "unsettled"  # an instance is on its way from or to somewhere
    HOLD = "hold"  # the shortage has not lasted yet
    PAUSE = "pause"  # the last move was only just now
    MOVE = "move"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One instance that serves."""

    instance: InstanceId
    usage: float  # of what it can do, 0 to 1
    sequences: int = 0
    indexed_blocks: int = 0  # that it would lose


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """All instances of one role."""

    wait_s: float  # that a request is predicted to wait for its turn there
    candidates: tuple[Candidate, ...]

    @property
    def usage(self) -> float:
        """Of what they can do together, 0 to 1."""
        return sum(each.usage for each in self.candidates) / max(1, len(self.candidates))

    @property
    def usage_with_one_less(self) -> float:
        """Of what the others could do with the same work; inf: there are no others."""
        rest = len(self.candidates) - 1
        return sum(each.usage for each in self.candidates) / rest if rest > 0 else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The two sides at one moment."""

    now_s: float
    sides: Mapping[Role, Side]  # of PREFILL and DECODE
    is_settled: bool  # all that is known serves, nobody changes its role, all have reported


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What counts as short, as idle, and as long enough."""

    wait_s: Mapping[Role, float]  # longer is short
    idle_usage: float
    hold_s: float
    pause_s: float

    @classmethod
    def of(cls, section: SchedulerSection) -> "Rules":
        """Returns what the config says."""
        planner, promise_s = section.planner, section.slo.ttft_s
        # Beyond the promise requests are refused, so that the queue never shows more.
        prefill_s = section.queue.instance_s if promise_s is None else promise_s / 2
        if planner.prefill_wait_s is not None:
            prefill_s = planner.prefill_wait_s
        return cls(
            wait_s={Role.PREFILL: prefill_s, Role.DECODE: planner.decode_wait_s},
            idle_usage=planner.idle_usage,
            hold_s=planner.hold_s,
            pause_s=planner.pause_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a decision has to know of earlier ones."""

    short: Role | None = None  # which side is, and the other idles
    since_s: float = 0.0
    moved_s: float | None = None  # when the last move ended; None: there was none


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now."""

    verdict: Verdict
    why: str
    instance: InstanceId | None = None  # who moves; None: nobody
    role: Role | None = None  # to which


def decide(balance: Balance, course: Course, rules: Rules) -> tuple[Decision, Course]:
    """Returns what to do now, and the course that the next call is given.

    Whoever moves an instance notes the end of it in the course (`moved_s`).
    """
    if not balance.is_settled:
        why = "an instance is draining, down, or between two roles"
        return Decision(verdict=Verdict.UNSETTLED, why=why), replace(course, short=None)
    shortage = _shortage(balance, rules)
    if shortage.verdict is not Verdict.MOVE:
        return shortage, replace(course, short=None)
    if course.short is not shortage.role:
        course = replace(course, short=shortage.role, since_s=balance.now_s)
    lasted_s = balance.now_s - course.since_s
    if lasted_s < rules.hold_s:
        why = f"{shortage.why}; for {lasted_s:.1f} s, needed: {rules.hold_s:g} s"
        return Decision(verdict=Verdict.HOLD, why=why), course
    if course.moved_s is not None and balance.now_s - course.moved_s < rules.pause_s:
        ago_s = balance.now_s - course.moved_s
        why = f"{shortage.why}; the last move was {ago_s:.1f} s ago, needed: {rules.pause_s:g} s"
        return Decision(verdict=Verdict.PAUSE, why=why), course
    return shortage, replace(course, short=None)


def _shortage(balance: Balance, rules: Rules) -> Decision:
    """Returns which side should get an instance now, and which one; or why neither."""
    short = [role for role in OTHER if balance.sides[role].wait_s > rules.wait_s[role]]
    short.sort(key=lambda role: -balance.sides[role].wait_s / rules.wait_s[role])
    refusals: list[Decision] = []
    for role in short:
        giver = balance.sides[OTHER[role]]
        text = (
            f"{role.value} is short: {balance.sides[role].wait_s:.2f} s to wait, allowed: "
            f"{rules.wait_s[role]:g} s"
        )
        if len(giver.candidates) < 2:
            why = f"{text}; {OTHER[role].value} has {len(giver.candidates)} instances"
            refusals.append(Decision(verdict=Verdict.LAST, why=why))
            continue
        after = giver.usage_with_one_less
        text += f"; {OTHER[role].value} with one less would be used to {after:.0%}"
        if after > rules.idle_usage:
            why = f"{text}, allowed: {rules.idle_usage:.0%}"
            refusals.append(Decision(verdict=Verdict.BUSY, why=why))
            continue
        chosen = min(
            giver.candidates, key=lambda each: (each.sequences, each.indexed_blocks, each.instance)
        )
        return Decision(verdict=Verdict.MOVE, why=text, instance=chosen.instance, role=role)
    if refusals:
        return refusals[0]
    waits = ", ".join(f"{role.value} {balance.sides[role].wait_s:.2f} s" for role in OTHER)
    return Decision(verdict=Verdict.ENOUGH, why=f"nobody waits too long: {waits}")
