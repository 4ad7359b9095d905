"""The front door: one request in, routed, one stream of tokens out (design section 7)."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from memserve_jax.core.errors import MemServeError, NoInstanceError
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.core.types import Request
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import to_message, to_request
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceServicer
from memserve_jax.proto.status import status_of
from scheduler.answer import Answer
from scheduler.cluster import Traits
from scheduler.flights import Flight
from scheduler.request_counts import RequestCounts
from scheduler.router import Plan, Router
from scheduler.state import State

LONG_PROMPT_BYTES = 1 << 14  # prepared on a thread, so that nobody else waits
LOOK_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Relay:
    """One attempt to serve a request."""

    plan: Plan
    flight: Flight
    answer: Answer


class FrontDoor(GenerateServiceServicer):
    """`GenerateService` of the scheduler."""

    def __init__(self, state: State, router: Router, *, card: ModelCard, tokenizer: Tokenizer):
        """Opens nothing by itself.

        Args:
          state: What is known.
          router: Decides and learns.
          card: The model's ids, limits and sampling defaults.
          tokenizer: The model's.
        """
        self._state = state
        self._router = router
        self._card = card
        self._tokenizer = tokenizer
        self._counts = RequestCounts(state.tally)
        self._is_closed = False

    def close(self) -> None:
        """Takes no more requests; those in flight go on."""
        self._is_closed = True

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:
        """Streams an answer from the instance that the policy chose."""
        try:
            with self._counts.ended():
                prepared = await self._prepare(request)
                flight = self._state.flights.admit(prepared.request_id)
                try:
                    await self._serve(prepared, flight, context)
                finally:
                    self._state.flights.land(flight)
        except MemServeError as error:
            await context.abort(*status_of(error))
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")

    async def Route(self, request: pb.GenerateRequest, context: Any) -> pb.RouteResponse:
        """Says where to stream from directly."""
        try:
            plan = self._router.plan(await self._prepare(request))
        except MemServeError as error:
            return await context.abort(*status_of(error))
        return pb.RouteResponse(target=plan.decode.target, route=plan.to_message())

    async def _prepare(self, message: pb.GenerateRequest) -> Request:
        """Returns the request in `message`.

        Raises:
          InvalidRequestError: it can never be served.
          NoInstanceError: the door is closed.
        """
        if self._is_closed:
            raise NoInstanceError("the scheduler is shutting down; try another, or again later")
        arrival_s = self._state.clock.now_s()
        limits = self._state.cluster.limits(self._card.max_context_tokens)

        def prepare() -> Request:
            return to_request(
                message,
                card=self._card,
                tokenizer=self._tokenizer,
                limits=limits,
                now_s=arrival_s,
            )

        if message.ByteSize() > LONG_PROMPT_BYTES:
            return await asyncio.to_thread(prepare)
        return prepare()

    async def _serve(self, request: Request, flight: Flight, context: Any) -> None:
        """Routes `request` and streams its answer to the client.

        One attempt. A replay elsewhere would plan again and go on with the same `Answer`, which
        knows what the client has (issue 5).

        Raises:
          NoInstanceError: no instance, or the one that served went away.
          MemServeError: an instance broke the protocol.
          grpc.aio.AioRpcError: the instance's own error, with its code.
        """
        plan = self._router.plan(request)
        self._state.flights.depart(flight, plan.route, plan.work)
        answer = Answer(
            request,
            sent_s=self._state.clock.now_s(),
            meter=self._counts.meter(request.arrival_s),
        )
        line = self._state.channels.to(plan.decode.target)
        call = line.generate.Generate(
            to_message(request, plan.to_message()), timeout=context.time_remaining()
        )
        lost: list[str] = []

        def lose(reason: str) -> None:
            lost.append(reason)
            call.cancel()

        flight.on_lost = lose
        try:
            await self._relay(call, Relay(plan, flight, answer), context)
        except (asyncio.CancelledError, grpc.aio.AioRpcError) as error:
            if lost:
                raise NoInstanceError(f"{lost[0]}; try again") from None
            if isinstance(error, grpc.aio.AioRpcError):
                raise await self._explained(error, plan) from None
            raise  # the client hung up, or its deadline has passed
        finally:
            flight.on_lost = None
            call.cancel()

    async def _relay(self, call: Any, relay: Relay, context: Any) -> None:
        """Passes the messages of `call` on to the client and learns from them."""
        answer = relay.answer
        async for response in call:
            for message in answer.take(response, self._state.clock.now_s()):
                self._learn(relay)
                await context.write(message)
        if not answer.is_finished:
            raise MemServeError(f"{_name(relay.plan)} ended the stream before the answer was done")

    def _learn(self, relay: Relay) -> None:
        """Notes what the tokens so far say about load and caches."""
        plan, flight, answer = relay.plan, relay.flight, relay.answer
        if answer.token_ids and flight.work is not None:
            self._state.flights.prefilled(flight)
            self._router.prefilled(plan)
        if len(answer.token_ids) > 1 and not flight.has_arrived:
            self._state.flights.arrived(flight)
            self._router.arrived(plan)
        if answer.last is not None:
            self._router.finished(plan, answer.token_ids)
            self._counts.finished(answer.last, plan.route.cached_tokens)

    async def _explained(self, error: grpc.aio.AioRpcError, plan: Plan) -> Exception:
        """Returns what the client is told of an instance's error.

        If the instance, or one behind it, is unavailable, both are looked at, so that the next
        request does not run into the same wall before a heartbeat is missed.
        """
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return error
        instances = {traits.instance: traits for traits in (plan.prefill, plan.decode)}
        await asyncio.gather(*(self._look_at(traits) for traits in instances.values()))
        text = " ".join((error.details() or "").split())
        _log.warning("%s: %s is unavailable: %s", plan.request.request_id, _name(plan), text)
        return NoInstanceError(f"{_name(plan)} is unavailable: {text}; try again")

    async def _look_at(self, traits: Traits) -> None:
        """Notes the present state of an instance, or that it does not answer."""
        if not self._state.cluster.lives(traits):
            return
        line = self._state.channels.to(traits.target)
        status: pb.InstanceStatus | None = None
        with contextlib.suppress(grpc.aio.AioRpcError):
            status = await line.instance.Status(pb.StatusRequest(), timeout=LOOK_TIMEOUT_S)
        if not self._state.cluster.lives(traits):
            return
        member = self._state.cluster.member(traits.instance)
        if status is not None and status.epoch == traits.epoch:
            member.status = status
        else:
            member.is_suspect = True


def _name(plan: Plan) -> str:
    return f"instance {plan.decode.instance} at {plan.decode.target}"
