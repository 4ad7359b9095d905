"""One attempt at a request: sent along a plan, its answer relayed to the client as it comes."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from memserve_jax.core.errors import MemServeError, NoInstanceError
from memserve_jax.core.types import InstanceId, Request
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import to_message
from memserve_jax.proto.route_seal import sealed_route
from memserve_jax.telemetry.request_context import outgoing_metadata
from scheduler.answer import Answer
from scheduler.arrivals import Arrivals, joined
from scheduler.flights import Flight
from scheduler.member import Traits
from scheduler.replay import AttemptFailedError
from scheduler.request_counts import RequestCounts
from scheduler.router import Plan, Router
from scheduler.state import State

LOOK_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """A request on its way, over all its attempts."""

    request: Request  # as the client sent it
    flight: Flight
    answer: Answer
    context: Any  # the client's call


@dataclass(frozen=True, slots=True)
class _Relay:
    """What an attempt relays, and where the answer stood when it began."""

    plan: Plan
    trip: Trip
    num_before: int


class Attempts:
    """Makes attempts. Lives in the asyncio loop."""

    def __init__(self, state: State, router: Router, counts: RequestCounts):
        """Starts with nothing under way.

        Args:
          state: What is known.
          router: Learns from what comes.
          counts: Counts whole answers.
        """
        self._state = state
        self._router = router
        self._counts = counts

    async def make(self, plan: Plan, trip: Trip) -> None:
        """Sends the request of `plan` and streams its answer to the client, up to its end.

        Raises:
          AttemptFailedError: it ended before that, but not by the client's doing.
        """
        with self._state.tracer.span("attempt", calls=True) as span:
            span.set(
                {
                    "memserve.decode_instance": str(plan.route.decode),
                    "memserve.tokens_before": len(trip.answer.token_ids),
                }
            )
            await self._make(plan, trip)

    async def _make(self, plan: Plan, trip: Trip) -> None:
        self._state.flights.depart(trip.flight, plan.route, plan.work)
        trip.answer.sent(self._state.clock.now_s())
        line = self._state.channels.to(plan.decode.target)
        route = sealed_route(plan.to_message(), self._state.credentials)
        call = line.generate.Generate(
            to_message(plan.request, route),
            timeout=trip.context.time_remaining(),
            metadata=outgoing_metadata(),
        )
        lost: list[str] = []

        def lose(reason: str) -> None:
            lost.append(reason)
            call.cancel()

        trip.flight.on_lost = lose
        try:
            await self._relay(call, _Relay(plan, trip, len(trip.answer.token_ids)))
        except asyncio.CancelledError:
            if not lost or _is_cancelled():
                raise  # the client hung up, or its deadline has passed
            raise _lost(lost[0]) from None
        except grpc.aio.AioRpcError as error:
            if lost:
                raise _lost(lost[0]) from None
            raise await self._explained(error, plan) from None
        finally:
            trip.flight.on_lost = None
            call.cancel()

    async def _relay(self, call: Any, relay: _Relay) -> None:
        """Passes the messages of `call` on to the client and learns from them."""
        answer, arrivals = relay.trip.answer, Arrivals(call)
        try:
            while came := await arrivals.take():
                await self._pass_on(came, relay)
        finally:
            await arrivals.close()
        if not answer.is_finished:
            raise self._broken_off(relay.plan, "ended the stream before the answer was done")

    async def _pass_on(self, came: Sequence[pb.GenerateResponse], relay: _Relay) -> None:
        """Sends the client what is new in messages that came together, as one."""
        answer, now_s = relay.trip.answer, self._state.clock.now_s()
        ready: list[pb.GenerateResponse] = []
        is_cancelled = False
        for message in came:
            is_cancelled = message.finish_reason == pb.CANCELLED
            if is_cancelled:
                break
            ready += answer.take(message, now_s)
        if ready and answer.is_finished:
            self._learn(relay)  # the client's next request may be on its way the moment it has it
            await relay.trip.context.write(joined(ready))
        elif ready:
            await relay.trip.context.write(joined(ready))
            self._learn(relay)
        if is_cancelled:
            raise self._broken_off(relay.plan, "cancelled the answer")

    def _learn(self, relay: _Relay) -> None:
        """Notes what the tokens so far say about load and caches."""
        plan, flight, answer = relay.plan, relay.trip.flight, relay.trip.answer
        num_new = len(answer.token_ids) - relay.num_before
        if num_new and flight.work is not None:
            self._state.flights.prefilled(flight)
            self._router.prefilled(plan)
        if num_new > 1 and not flight.has_arrived:
            self._state.flights.arrived(flight)
            self._router.arrived(plan)
        if answer.last is not None:
            self._router.finished(plan, answer.token_ids)
            self._counts.finished(answer.last, plan.route.cached_tokens)

    def _broken_off(self, plan: Plan, what: str) -> AttemptFailedError:
        told = MemServeError(f"{_name(plan)} {what}")
        return AttemptFailedError(grpc.StatusCode.INTERNAL, told, _instances(plan))

    async def _explained(self, error: grpc.aio.AioRpcError, plan: Plan) -> AttemptFailedError:
        """Returns what an instance's error means.

        If the instance, or one behind it, is unavailable, both are looked at, so that the next
        attempt does not run into the same wall before a heartbeat is missed.
        """
        code, text = error.code(), " ".join((error.details() or "").split())
        _log.warning("%s: %s: %s: %s", plan.request.request_id, _name(plan), code.name, text)
        suspects = _instances(plan)
        if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return AttemptFailedError(code, error, suspects)
        instances = {traits.instance: traits for traits in (plan.prefill, plan.decode)}
        states = await asyncio.gather(*(self._look_at(each) for each in instances.values()))
        down = frozenset(name for name, is_up in zip(instances, states, strict=True) if not is_up)
        told = NoInstanceError(f"{_name(plan)} is unavailable: {text}; try again")
        return AttemptFailedError(code, told, down or suspects)

    async def _look_at(self, traits: Traits) -> bool:
        """Notes the present state of an instance, or that it does not answer.

        Returns:
          Whether that life of it serves.
        """
        if not self._state.cluster.lives(traits):
            return False
        line = self._state.channels.to(traits.target)
        status: pb.InstanceStatus | None = None
        with contextlib.suppress(grpc.aio.AioRpcError):
            status = await line.instance.Status(pb.StatusRequest(), timeout=LOOK_TIMEOUT_S)
        if not self._state.cluster.lives(traits):
            return False
        member = self._state.cluster.member(traits.instance)
        if status is not None and status.epoch == traits.epoch:
            member.status = status
        else:
            member.is_suspect = True
        return member.is_routable


def _lost(reason: str) -> AttemptFailedError:
    """Returns the failure of an attempt whose instance is gone, and so is not to be avoided."""
    told = NoInstanceError(f"{reason}; try again")
    return AttemptFailedError(grpc.StatusCode.UNAVAILABLE, told, frozenset())


def _is_cancelled() -> bool:
    """Whether this task is being cancelled, not just a call in it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _instances(plan: Plan) -> frozenset[InstanceId]:
    return frozenset({plan.route.prefill, plan.route.decode})


def _name(plan: Plan) -> str:
    return f"instance {plan.decode.instance} at {plan.decode.target}"
