"""From a request to a route, and from answers back to the global trees (paper section 6)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from memserve_jax.core.block_keys import block_keys
from memserve_jax.core.block_names import BlockNames
from memserve_jax.core.cost_model import PrefillCost, PrefillWork
from memserve_jax.core.errors import NoInstanceError
from memserve_jax.core.types import InstanceId, Request, Route
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.telemetry.scheduler_metrics import ROUTE_TIME, ROUTES
from scheduler.fetch_source import fetch_source
from scheduler.member import Traits
from scheduler.policies import Policy
from scheduler.snapshots import Snapshots
from scheduler.state import State
from scheduler.view import ClusterView


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where one request goes, with what is needed to send it there and to learn from it."""

    request: Request
    route: Route
    prefill: Traits
    decode: Traits
    names: BlockNames  # of the whole blocks of the prompt, and of the answer before a replay
    fetch: Traits | None = None  # a peer that holds more than `prefill`
    fetch_tokens: int = 0  # what it is believed to hold

    @property
    def work(self) -> PrefillWork:
        """What the prefill is expected to cost."""
        return PrefillWork.of(len(self.request.given_token_ids), self.route.cached_tokens)

    def to_message(self) -> pb.RouteInfo:
        """Returns the route for the wire."""
        message = pb.RouteInfo(
            prefill_instance=self.prefill.instance,
            prefill_target=self.prefill.target,
            decode_instance=self.decode.instance,
            decode_target=self.decode.target,
            cached_tokens=self.route.cached_tokens,
            reason=self.route.reason,
        )
        if self.fetch is not None:
            message.fetch_instance = self.fetch.instance
            message.fetch_target = self.fetch.target
            message.fetch_tokens = self.fetch_tokens
        return message


class Router:
    """Routes by one policy over what is known. Lives in the asyncio loop.

    Attributes:
      policy_name: What the policy is called.
    """

    def __init__(self, state: State, *, policy: Policy, cost: PrefillCost, min_gain: float = 0.0):
        """Makes a router that has routed nothing.

        Args:
          state: What is known; this router keeps the trees up to date.
          policy: Decides.
          cost: Of a prefill where no instance has reported its rate.
          min_gain: What a request has to save to leave the owner of its prefix: see `ClusterView`.
        """
        self._state = state
        self._policy = policy
        self.policy_name = getattr(policy, "__name__", type(policy).__name__)
        self._snapshots = Snapshots(state, cost, min_gain=min_gain)
        self._num_routed = 0

    @property
    def num_routed(self) -> int:
        """Requests routed so far."""
        return self._num_routed

    def plan(
        self,
        request: Request,
        avoid: frozenset[InstanceId] = frozenset(),
        *,
        names: BlockNames | None = None,
    ) -> Plan:
        """Decides where `request` runs.

        Args:
          request: What was answered already is to be prefilled as if it was prompt.
          avoid: Taken only where nothing else has the role.
          names: Of its blocks, where somebody has made them; None: made here.

        Raises:
          NoInstanceError: no set of live instances can serve it.
        """
        started_s = self._state.clock.now_s()
        plan, _ = self._decide(request, avoid, names)
        self._num_routed += 1
        self._count(plan, started_s)
        hits = plan.names.first(plan.route.cached_tokens // plan.prefill.block_size_tokens)
        self._state.trees[plan.prefill.role].touch(plan.prefill.instance, hits)
        return plan

    def consider(self, request: Request) -> tuple[Plan, ClusterView]:
        """Returns what `plan` would say now, and the view it would say it of. Counts nothing.

        Raises:
          NoInstanceError: no set of live instances can serve it.
        """
        return self._decide(request, frozenset(), None)

    def _decide(
        self, request: Request, avoid: frozenset[InstanceId], names: BlockNames | None
    ) -> tuple[Plan, ClusterView]:
        block_size = self._state.cluster.block_size_tokens
        if block_size is None:
            raise NoInstanceError("no instance is registered; try again later")
        asked = _as_prompt(request)
        keys = block_keys(asked.prompt_token_ids, block_size)
        names = names or BlockNames(asked.cache_salt, keys)
        view = self._snapshots.view(asked, keys, names, avoid=avoid, turn=self._num_routed)
        route = self._policy(asked, view)
        source = fetch_source(asked, route, view, block_size)
        plan = Plan(
            request=request,
            route=route,
            prefill=self._state.cluster.member(route.prefill).traits,
            decode=self._state.cluster.member(route.decode).traits,
            names=names,
            fetch=source and self._state.cluster.member(source.instance).traits,
            fetch_tokens=source.num_tokens if source else 0,
        )
        return plan, view

    def prefilled(self, plan: Plan) -> None:
        """Learns from the first token: the prefill instance holds the prompt."""
        if plan.prefill.caching.prefill_caches:
            self._confirm(plan.prefill, plan.names)

    def arrived(self, plan: Plan) -> None:
        """Learns from the second token: the decode instance holds the prompt."""
        if plan.decode is not plan.prefill and plan.decode.caching.decode_caches:
            self._confirm(plan.decode, plan.names)

    def finished(self, plan: Plan, output_token_ids: Sequence[int]) -> None:
        """Learns from a whole answer: its KV is history, where the caching mode keeps it.

        The last token has none, and an answer of one token never reaches a decode instance.
        """
        if len(output_token_ids) < 2:
            return
        size = plan.decode.block_size_tokens
        prompt, start = plan.request.prompt_token_ids, len(plan.names) * size
        answered = output_token_ids[max(0, start - len(prompt)) : -1]
        history = plan.names.followed_by(block_keys([*prompt[start:], *answered], size))
        if plan.decode.caching.decode_caches:
            self._confirm(plan.decode, history)
        if plan.decode.caching.sends_back:
            self._confirm(plan.prefill, history)

    def _count(self, plan: Plan, started_s: float) -> None:
        tally, took_s = self._state.tally, self._state.clock.now_s() - started_s
        tally.observe(ROUTE_TIME, took_s)
        route = plan.route
        facts = {
            "memserve.policy": self.policy_name,
            "memserve.reason": route.reason,
            "memserve.prefill_instance": str(route.prefill),
            "memserve.decode_instance": str(route.decode),
            "memserve.expected_cached_tokens": route.cached_tokens,
        }
        self._state.tracer.past("route", facts, began_s=took_s)
        for role, name in {
            (traits.role.value, str(traits.instance)) for traits in (plan.prefill, plan.decode)
        }:
            tally.add(ROUTES, self.policy_name, plan.route.reason, role, name)

    def _confirm(self, holder: Traits, names: BlockNames) -> None:
        if self._state.cluster.lives(holder):
            tree = self._state.trees[holder.role]
            tree.confirm(holder.instance, names.first(len(names)), self._state.clock.now_s())


def _as_prompt(request: Request) -> Request:
    """Returns `request` as it is to be prefilled: what was answered before is prompt as well."""
    if not request.resumed_token_ids:
        return request
    given = request.given_token_ids
    return dataclasses.replace(request, prompt_token_ids=given, resumed_token_ids=())
