"""Why a request would go where it would: what the policy saw, and a sentence about it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from memserve_jax.core.types import Request
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.member import Member
from scheduler.policies import crowded, ttft_s
from scheduler.roster import Rows
from scheduler.router import Router
from scheduler.state import State
from scheduler.view import ClusterView


def explain(request: Request, state: State, router: Router) -> pb.ExplainReply:
    """Returns where `request` would go now, and what every instance would cost it.

    Raises:
      NoInstanceError: nowhere.
    """
    plan, view = router.consider(request)
    winner = view.roster.row_of[plan.route.prefill]
    reply = pb.ExplainReply(
        policy=router.policy_name,
        route=plan.to_message(),
        why=_WHY[plan.route.reason](request, view, winner),
        prompt_tokens=len(request.prompt_token_ids),
    )
    costs = _Costs(request, view)
    reply.instances.extend(costs.of(member) for member in state.cluster.members())
    return reply


class _Costs:
    """The columns of one view, for a message an instance."""

    def __init__(self, request: Request, view: ClusterView):
        self._view = view
        self._queued_s = view.queued_s()
        self._prefill_s = view.prefill_s(len(request.prompt_token_ids))
        self._crowded = crowded(view)
        self._starts = frozenset(view.prefillers().tolist())

    def of(self, member: Member) -> pb.ExplainedInstance:
        """Returns what the view says of `member`."""
        view, traits = self._view, member.traits
        told = pb.ExplainedInstance(instance=traits.instance, role=traits.role, state=member.state)
        row = view.roster.row_of.get(traits.instance)
        if row is None:
            return told
        can_start = row in self._starts
        held = view.prefill_cached_tokens if can_start else view.decode_cached_tokens
        told.can_start = can_start
        told.cached_tokens = int(held[row])
        told.queued_prefill_tokens = int(view.queued.new_tokens[row])
        told.sequences = int(view.sequences[row])
        told.indexed_blocks = int(view.indexed_blocks[row])
        if can_start:
            told.queued_s = float(self._queued_s[row])
            told.prefill_s = float(self._prefill_s[row])
            told.is_crowded = bool(self._crowded[row])
        return told


def _by_ttft(request: Request, view: ClusterView, winner: int) -> str:
    times_s, crowds, others = ttft_s(request, view), crowded(view), _others(view, winner)
    cached = int(view.prefill_cached_tokens[winner])
    told = (
        f"{view.roster.instance(winner)}: first token predicted in {_ms(float(times_s[winner]))}, "
        f"{_ms(float(view.queued_s()[winner]))} of it queued there before, "
        f"{len(request.prompt_token_ids) - cached} tokens to compute"
    )
    passed = [row for row in others.tolist() if crowds[row] and not crowds[winner]]
    sooner = [row for row in passed if times_s[row] < times_s[winner]]
    if sooner:
        row = min(sooner, key=lambda row: float(times_s[row]))
        told += (
            f"; {view.roster.instance(row)} would take {_ms(float(times_s[row]))} but has a crowd, "
            f"{int(view.sequences[row])} sequences"
        )
    rivals = [row for row in others.tolist() if row not in passed]
    if not rivals:
        return told
    row = min(rivals, key=lambda row: float(times_s[row]))
    if times_s[row] == times_s[winner]:
        return told + _tie(view, winner, row)
    name, told_s = view.roster.instance(row), _ms(float(times_s[row]))
    if times_s[row] < times_s[winner]:
        return (
            f"{told}; {name} would take {told_s}, too little less to leave {cached} cached tokens "
            f"(scheduler.policy_min_gain: {view.min_gain:g})"
        )
    return f"{told}; the next, {name}, would take {told_s}"


def _by_prefix(request: Request, view: ClusterView, winner: int) -> str:
    del request
    held = view.prefill_cached_tokens
    told = f"{view.roster.instance(winner)} holds {int(held[winner])} tokens of the prompt"
    others = _others(view, winner)
    if not len(others):
        return told
    row = int(others[held[others].argmax()])
    if held[row] == held[winner]:
        return told + _tie(view, winner, row)
    return f"{told}, the next, {view.roster.instance(row)}, {int(held[row])}"


def _by_load(request: Request, view: ClusterView, winner: int) -> str:
    del request
    counts, queued = view.sequences, view.queued.new_tokens
    told = (
        f"{view.roster.instance(winner)} has {int(counts[winner])} sequences and "
        f"{int(queued[winner])} tokens to prefill"
    )
    others = _others(view, winner)
    if not len(others):
        return told
    row = int(others[np.lexsort((queued[others], counts[others]))[0]])
    if (counts[row], queued[row]) == (counts[winner], queued[winner]):
        return told + _tie(view, winner, row)
    return (
        f"{told}, the next, {view.roster.instance(row)}, {int(counts[row])} and {int(queued[row])}"
    )


def _by_session(request: Request, view: ClusterView, winner: int) -> str:
    whose = f"session {request.session_id!r}" if request.session_id else "the first block"
    return f"{whose} belongs to {view.roster.instance(winner)} by its hash"


def _by_turn(request: Request, view: ClusterView, winner: int) -> str:
    del request
    return f"it is the turn of {view.roster.instance(winner)}, after {view.turn} requests"


_WHY: Mapping[str, Callable[[Request, ClusterView, int], str]] = MappingProxyType(
    {  # by the reason of a route
        "ttft": _by_ttft,
        "prefix": _by_prefix,
        "load": _by_load,
        "session": _by_session,
        "turn": _by_turn,
    }
)


def _others(view: ClusterView, winner: int) -> Rows:
    rows = view.prefillers()
    return rows[rows != winner]


def _tie(view: ClusterView, winner: int, other: int) -> str:
    """Returns how a tie was broken."""
    mine, theirs = int(view.indexed_blocks[winner]), int(view.indexed_blocks[other])
    name = view.roster.instance(other)
    if mine < theirs:
        return f"; {name} is equal but for more blocks cached, {theirs}, not {mine}"
    return f"; {name} is equal: the hash of the first block decides"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
