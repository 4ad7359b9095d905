"""Serves a request by as many attempts as it takes, within bounds; the client sees one answer.

An attempt after the first asks another instance, if there is one, for what comes after the
tokens that the client has: greedy ones are the model's wherever they are computed, sampled ones
depend on seed and position alone.
"""

import asyncio
import itertools
import logging
import random

import grpc

from memserve_jax.core.errors import NoInstanceError
from memserve_jax.core.types import InstanceId, Request
from memserve_jax.telemetry.scheduler_metrics import REPLAYS
from scheduler.attempt import AttemptFailedError, Attempts, Trip
from scheduler.replay import ReplayPolicy, resumed
from scheduler.router import Plan, Router
from scheduler.state import State

_log = logging.getLogger(__name__)


class Failover:
    """Plans, attempts, and attempts again elsewhere. Lives in the asyncio loop."""

    def __init__(self, state: State, router: Router, attempts: Attempts, policy: ReplayPolicy):
        """Starts with nothing under way.

        Args:
          state: What is known.
          router: Plans each attempt.
          attempts: Makes them.
          policy: Says how many, and how patiently.
        """
        self._state = state
        self._router = router
        self._attempts = attempts
        self._policy = policy
        self._dice = random.Random()

    async def serve(self, trip: Trip, *, avoid: frozenset[InstanceId] = frozenset()) -> None:
        """Streams the whole answer of `trip` to its client.

        Args:
          trip: Just begun.
          avoid: Instances that have their fill: the first attempt goes elsewhere if it can.

        Raises:
          MemServeError, grpc.aio.AioRpcError: what the client is told: of the last attempt.
        """
        plan = self._router.plan(trip.request, avoid)
        failures: list[grpc.StatusCode] = []
        while True:
            try:
                return await self._attempts.make(plan, trip)
            except AttemptFailedError as error:
                failure = error
            self._state.flights.recall(trip.flight)
            failures.append(failure.code)
            tokens = trip.answer.token_ids
            if not self._policy.allows(failures, has_begun=bool(tokens)):
                raise failure.told
            request = resumed(trip.request, len(failures), tokens)
            plan = await self._plan_again(request, failure)
            self._state.tally.add(REPLAYS, failure.code.name)
            _log.warning(
                "%s: replayed on %s after %d tokens: %s",
                request.request_id,
                plan.route.decode,
                len(tokens),
                failure,
            )

    async def _plan_again(self, request: Request, failure: AttemptFailedError) -> Plan:
        """Returns the plan of a replay, after a pause, once there is an instance for it.

        Raises:
          MemServeError, grpc.aio.AioRpcError: what the client is told: there was none in time.
        """
        now_s = self._state.clock.now_s
        deadline_s = now_s() + self._policy.wait_s
        for count in itertools.count(1):
            await asyncio.sleep(self._policy.pause_of(count, self._dice.random()))
            plan = self._plan(request, failure.suspects)
            if plan is not None:
                return plan
            if now_s() >= deadline_s:
                break
        raise failure.told

    def _plan(self, request: Request, avoid: frozenset[InstanceId]) -> Plan | None:
        if not self._state.cluster.can_serve:
            return None
        try:
            return self._router.plan(request, avoid)
        except NoInstanceError:
            return None
