"""`GenerateService` of an instance: one path for colocated and disaggregated requests.

A colocated instance answers alone. A decode instance drives: it tells its engine to expect the
request, calls `Prefill` on the prefill instance, streams the first token on as soon as that
gives it, while the KV comes by MemPool. Whoever hangs up or runs out of time, at any moment,
ends the request wherever it is: gRPC carries the cancellation from decode to prefill, and the
`finally` of each call tells its engine.
"""

import asyncio
import contextlib
import functools
from collections.abc import Iterator

import grpc
import grpc.aio

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import FinishReason, InstanceId, Request, Role
from memserve_jax.engine.events import Event, Failed, PrefillDone, Tokens
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import client_id, to_message, to_request
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceServicer
from memserve_jax.proto.route_seal import check_route
from memserve_jax.serving.answers import (
    AnswerTiming,
    first_token_from_message,
    prefill_done_from_message,
    tokens_to_message,
)
from memserve_jax.serving.instance import Instance
from memserve_jax.serving.peers import Context, peer_errors
from memserve_jax.telemetry.request_context import outgoing_metadata, work_for


class GenerateServicer(GenerateServiceServicer):
    """Answers requests that were routed to this instance."""

    def __init__(self, instance: Instance):
        self._instance = instance

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Streams an answer. See the proto for the statuses."""
        async with self._instance.answering("Generate", context):
            self._instance.refuse_unless_serving()
            where = await self._prefill_instance(request, context)
            accepted = to_request(
                request,
                card=self._instance.parts.card,
                tokenizer=self._instance.parts.tokenizer,
                limits=self._instance.limits,
                now_s=self._instance.parts.clock.now_s(),
            )
            work_for(client_id(accepted.request_id))
            with self._instance.streams.open(accepted.request_id) as events:
                if accepted.fetch is not None:
                    self._instance.peers.learn(accepted.fetch.instance, request.route.fetch_target)
                answer = _Answer(self._instance, accepted, request.route, where, events)
                if where == self._instance.identity.instance:
                    await answer.compute_here(context)
                else:
                    await answer.compute_from(request.route.prefill_target, context)

    async def Route(self, request: pb.GenerateRequest, context: Context) -> pb.RouteResponse:
        """Refuses: routes are the scheduler's."""
        name = self._instance.identity.instance
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"Route: {name} is an instance, allowed: a scheduler",
        )
        raise AssertionError("abort raises")

    async def _prefill_instance(self, message: pb.GenerateRequest, context: Context) -> InstanceId:
        """Returns where `message` is to be prefilled; refuses what cannot be answered here."""
        identity = self._instance.identity
        route = message.route
        check_route(route, self._instance.peers.credentials)
        if identity.role is Role.COLOCATED:
            decode = route.decode_instance or identity.instance
            prefill = route.prefill_instance or decode
        else:
            prefill, decode = route.prefill_instance, route.decode_instance
        allowed = ""
        if identity.role is Role.PREFILL:
            allowed = "a decode or colocated instance"
        elif decode != identity.instance:
            allowed = f"a route whose decode_instance is {identity.instance!r}"
        elif identity.role is Role.COLOCATED and prefill != identity.instance:
            allowed = f"a route whose prefill_instance is {identity.instance!r}"
        elif identity.role is Role.DECODE and not (prefill and route.prefill_target):
            allowed = "a route with prefill_instance and prefill_target"
        if allowed:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"route: got decode_instance {decode!r}, prefill_instance {prefill!r} at "
                f"{identity.role} instance {identity.instance!r}, allowed: {allowed}",
            )
        return InstanceId(prefill)


class _Answer:
    """One answer, from its first command to the engine to its last message."""

    def __init__(
        self,
        instance: Instance,
        request: Request,
        route: pb.RouteInfo,
        prefill: InstanceId,
        events: asyncio.Queue[Event],
    ):
        self._instance = instance
        self._engine = instance.parts.engine
        self._clock = instance.parts.clock
        self._request = request
        self._route = route
        self._prefill = prefill
        self._events = events
        self._ended = False  # the engine has nothing more to say
        self._timing = AnswerTiming(
            arrival_s=request.arrival_s, prefill=prefill, decode=instance.identity.instance
        )
        self._meter = instance.counts.meter(request.arrival_s)

    async def compute_here(self, context: Context) -> None:
        """Prefills and decodes on this instance, streaming into `context`."""
        with self._cancelled_on_the_way_out():
            await self._instance.run(lambda: self._engine.submit(self._request))
            while not self._ended:
                await self._send(await self._next_tokens(), context)

    async def compute_from(self, target: str, context: Context) -> None:
        """Decodes here what the instance at `target` prefills, streaming into `context`."""
        with self._cancelled_on_the_way_out():
            await self._instance.run(lambda: self._engine.expect(self._request, self._prefill))
            handoff = asyncio.create_task(self._take_over(target, context.time_remaining()))
            try:
                while not self._ended:
                    tokens = await self._next_tokens()
                    if self._ended and tokens.finish_reason is not FinishReason.CANCELLED:
                        self._timing.moved = await handoff
                    await self._send(tokens, context)
            finally:
                handoff.cancel()
                await asyncio.gather(handoff, return_exceptions=True)

    async def _take_over(self, target: str, timeout_s: float | None) -> PrefillDone | None:
        """Calls `Prefill` and tells the engine of the first token.

        Returns what was moved here, or None where the peer failed; the engine hears of that,
        and ends the request unless it has the KV already.
        """
        request, identity = self._request, self._instance.identity
        stub = self._instance.peers.learn(self._prefill, target)
        message = pb.PrefillRequest(
            request=to_message(request, self._route),
            decode_instance=identity.instance,
            decode_target=self._instance.target,
            decode_epoch=identity.epoch,
        )
        try:
            with (
                self._instance.tracer.span("call_prefill", calls=True) as span,
                peer_errors(self._prefill),
            ):
                span.set({"memserve.prefill_instance": str(self._prefill)})
                call = stub.Prefill(message, timeout=timeout_s, metadata=outgoing_metadata())
                async for event in call:
                    if event.HasField("done"):
                        done = prefill_done_from_message(event.done, request.request_id)
                        span.set({"memserve.kv_blocks_moved": done.kv_blocks_moved})
                        return done
                    first = first_token_from_message(event.first_token, request.request_id)
                    self._instance.loop.post(functools.partial(self._engine.first_token, first))
            raise MemServeError(f"instance {self._prefill}: the prefill ended without its KV")
        except MemServeError as error:
            fail = functools.partial(self._engine.fail, request.request_id, error)
            self._instance.loop.post(fail)
            return None

    async def _next_tokens(self) -> Tokens:
        event = await self._events.get()
        if isinstance(event, Failed):
            self._ended = True
            raise event.error
        assert isinstance(event, Tokens), event
        self._ended = event.finish_reason is not None
        self._note(event)
        return event

    def _note(self, tokens: Tokens) -> None:
        now_s = self._clock.now_s()
        self._timing.saw(tokens, now_s)
        self._meter.passed(len(tokens.token_ids), now_s)
        counts, is_here = self._instance.counts, self._prefill == self._instance.identity.instance
        if tokens.queue_s is not None and is_here:
            self._instance.prefilled(self._request.arrival_s, tokens.queue_s, now_s)
        if self._ended:
            self._meter.finished(now_s)
            counts.answered(tokens)
            self._trace_decode(tokens, now_s)

    def _trace_decode(self, last: Tokens, now_s: float) -> None:
        assert last.usage is not None, "not the last"
        if self._timing.first_s is not None:
            facts = {"gen_ai.usage.output_tokens": last.usage.completion_tokens}
            began_s = now_s - self._timing.first_s
            self._instance.tracer.past("decode", facts, began_s=began_s)

    async def _send(self, tokens: Tokens, context: Context) -> None:
        message = tokens_to_message(tokens)
        if tokens.finish_reason is not None:
            message.timing.CopyFrom(self._timing.to_message(self._clock.now_s()))
        await context.write(message)

    @contextlib.contextmanager
    def _cancelled_on_the_way_out(self) -> Iterator[None]:
        """Ends the request in the engine where the body leaves before the engine has."""
        try:
            yield
        finally:
            if not self._ended:
                self._instance.cancel(self._request.request_id)
