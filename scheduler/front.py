"""The front door: one request in, routed, one stream of tokens out (design section 7)."""

import asyncio
import dataclasses
import logging
import secrets
from typing import Any

import grpc
import grpc.aio

from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.errors import MemServeError, NoInstanceError
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.core.types import Request
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.access import client_label
from memserve_jax.proto.convert import to_request
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceServicer
from memserve_jax.proto.route_seal import sealed_route
from memserve_jax.proto.status import status_of, trailers_of
from memserve_jax.telemetry.logs import REQUESTS
from memserve_jax.telemetry.request_context import work_for
from scheduler.answer import Answer
from scheduler.attempt import Attempts, Trip
from scheduler.failover import Failover
from scheduler.flights import Flight
from scheduler.gate import await_turn
from scheduler.replay import ReplayPolicy
from scheduler.request_counts import RequestCounts
from scheduler.router import Router
from scheduler.state import State

_requests = logging.getLogger(REQUESTS)

LONG_PROMPT_BYTES = 1 << 14  # prepared on a thread, so that nobody else waits


class FrontDoor(GenerateServiceServicer):
    """`GenerateService` of the scheduler."""

    def __init__(
        self,
        state: State,
        router: Router,
        section: SchedulerSection,
        *,
        card: ModelCard,
        tokenizer: Tokenizer,
    ):
        """Opens nothing by itself.

        Args:
          state: What is known.
          router: Decides and learns.
          section: Says how far to go for a request whose instance is lost.
          card: The model's ids, limits and sampling defaults.
          tokenizer: The model's.
        """
        self._state = state
        self._router = router
        self._card = card
        self._tokenizer = tokenizer
        self._counts = RequestCounts(state.tally)
        attempts = Attempts(state, router, self._counts)
        self._failover = Failover(state, router, attempts, ReplayPolicy.of(section))
        self._is_closed = False

    def close(self) -> None:
        """Takes no more requests; those in flight go on."""
        self._is_closed = True

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:
        """Streams an answer from the instance that the policy chose."""
        try:
            tracer = self._state.tracer
            with tracer.serve("request", context) as span, self._counts.ended():
                prepared = _seeded(await self.prepare(request))
                work_for(prepared.request_id)
                flight = self._state.flights.admit(prepared.request_id)
                try:
                    answer = await self._serve(prepared, flight, context)
                    span.set(answer.facts)
                    if _requests.isEnabledFor(logging.INFO):
                        _requests.info("%s: answered", prepared.request_id, extra=answer.facts)
                finally:
                    self._state.flights.land(flight)
        except MemServeError as error:
            await context.abort(*status_of(error), trailers_of(error))
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")

    async def Route(self, request: pb.GenerateRequest, context: Any) -> pb.RouteResponse:
        """Says where to stream from directly."""
        try:
            prepared = await self.prepare(request)
            self._state.gate.refuse_if_busy()
            plan = self._router.plan(prepared, self._state.gate.full())
        except MemServeError as error:
            return await context.abort(*status_of(error), trailers_of(error))
        route = sealed_route(plan.to_message(), self._state.credentials)
        return pb.RouteResponse(target=plan.decode.target, route=route)

    async def prepare(self, message: pb.GenerateRequest) -> Request:
        """Returns the request in `message`, as `Generate` and `Route` take it.

        Raises:
          InvalidRequestError: it can never be served.
          NoInstanceError: the door is closed.
        """
        if self._is_closed:
            raise NoInstanceError("the scheduler is shutting down; try another, or again later")
        arrival_s = self._state.clock.now_s()
        limits = dataclasses.replace(
            self._state.cluster.limits(self._card.max_context_tokens),
            max_prompt_bytes=self._state.credentials.limits.max_prompt_bytes,
        )

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

    async def _serve(self, request: Request, flight: Flight, context: Any) -> Answer:
        """Streams the answer to `request`, once it is its turn, and returns it.

        Raises:
          OverloadedError: it cannot be served in time, or too many wait.
          MemServeError, grpc.aio.AioRpcError: as `Failover.serve`.
        """
        gate = self._state.gate
        time_left_s, label = context.time_remaining(), client_label()
        ticket = await await_turn(gate, request, flight, time_left_s=time_left_s, label=label)
        answer = Answer(request, meter=self._counts.meter(request.arrival_s))
        trip = Trip(request=request, flight=flight, answer=answer, context=context)
        try:
            await self._failover.serve(trip, avoid=gate.full())
        finally:
            gate.leave(ticket, num_output=len(answer.token_ids))
        return answer


def _seeded(request: Request) -> Request:
    """Returns `request` with a seed where tokens are drawn, so that every attempt has the same."""
    sampling = request.sampling
    if sampling.seed is not None or sampling.temperature == 0:
        return request
    seeded = dataclasses.replace(sampling, seed=secrets.randbits(64))
    return dataclasses.replace(request, sampling=seeded)
