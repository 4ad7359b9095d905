"""`InstanceService`: what other instances and schedulers ask of an instance."""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import CachingMode, InstanceId, Request, Role, TransferId
from memserve_jax.engine.events import Event, Failed, FirstToken, PrefillDone, Tokens
from memserve_jax.mempool.control import FetchAnswer, ReserveAnswer
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import checked_seconds, client_id, to_request
from memserve_jax.proto.memserve_pb2_grpc import InstanceServiceServicer
from memserve_jax.proto.roles import parse_caching, parse_role
from memserve_jax.serving.answers import first_token_to_message, prefill_done_to_message
from memserve_jax.serving.engine_parts import EngineParts
from memserve_jax.serving.instance import Instance
from memserve_jax.serving.peers import Context, answered_errors
from memserve_jax.serving.pool_channel import (
    announcement_from_message,
    answer_to_message,
    fetch_from_message,
    reserve_from_message,
)
from memserve_jax.telemetry.request_context import work_for

DEFAULT_DRAIN_S = 300.0
DEFAULT_QUIESCE_S = 60.0  # where the caller gives no deadline

_T = TypeVar("_T")


class InstanceServicer(InstanceServiceServicer):
    """Prefill for decode instances, MemPool for peers, life cycle for schedulers."""

    def __init__(
        self,
        instance: Instance,
        *,
        drain: Callable[[float], Awaitable[None]],
        set_role: Callable[[Role, CachingMode, float], Awaitable[None]],
    ):
        """Serves `instance`.

        Args:
          instance: Shared with the other servicer.
          drain: Stops taking requests, returns when those there are have ended (or raises
            TimeoutError after so many seconds), and then ends the instance.
          set_role: Lets requests end in the same way, then serves on in another role.
        """
        self._instance = instance
        self._drain = drain
        self._set_role = set_role

    @property
    def _parts(self) -> EngineParts:
        return self._instance.parts

    async def Prefill(
        self,
        request: pb.PrefillRequest,
        context: Context,
    ) -> None:
        """Streams the first token, then the end of the KV's way to the decode instance."""
        async with self._instance.answering("Prefill", context):
            self._instance.refuse_unless_serving()
            if self._instance.identity.role is not Role.PREFILL:
                await context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Prefill: {self._instance.identity.instance} is a "
                    f"{self._instance.identity.role} instance, allowed: a prefill one",
                )
            accepted = to_request(
                request.request,
                card=self._parts.card,
                tokenizer=self._parts.tokenizer,
                limits=self._instance.limits,
                now_s=self._parts.clock.now_s(),
            )
            work_for(client_id(accepted.request_id))
            decode = InstanceId(request.decode_instance)
            epoch = request.decode_epoch or None  # it may not have been announced here yet
            self._instance.peers.learn(decode, request.decode_target)
            if accepted.fetch is not None:
                target = request.request.route.fetch_target
                self._instance.peers.learn(accepted.fetch.instance, target)
            with self._instance.streams.open(accepted.request_id) as events:
                submit = functools.partial(
                    self._parts.engine.submit_prefill, accepted, decode, epoch
                )
                await self._hand_over(accepted, submit, events, context)

    async def _hand_over(
        self,
        request: Request,
        submit: Callable[[], None],
        events: asyncio.Queue[Event],
        context: Context,
    ) -> None:
        ended, clock = False, self._parts.clock
        first_s = request.arrival_s
        try:
            await self._instance.run(submit)
            while not ended:
                event = await events.get()
                ended = not isinstance(event, FirstToken)
                match event:
                    case FirstToken():
                        first_s = clock.now_s()
                        self._instance.prefilled(request.arrival_s, event.queue_s, first_s)
                        await context.write(first_token_to_message(event))
                    case PrefillDone():
                        if event.kv_blocks_moved:
                            self._trace_transfer(event, clock.now_s() - first_s)
                        await context.write(prefill_done_to_message(event))
                    case Failed():
                        raise event.error
                    case Tokens():  # the last word on a request that was cancelled here
                        raise MemServeError("the prefill was cancelled")
        finally:
            if not ended:
                self._instance.cancel(request.request_id)

    def _trace_transfer(self, done: PrefillDone, seconds: float) -> None:
        self._instance.counts.handed_over(seconds)
        facts = {
            "memserve.kv_blocks_moved": done.kv_blocks_moved,
            "memserve.kv_bytes_moved": done.kv_bytes_moved,
        }
        self._instance.tracer.past("transfer", facts, began_s=seconds)

    async def Reserve(
        self,
        request: pb.ReserveRequest,
        context: Context,
    ) -> pb.ReserveReply:
        """Answers when the pool has found the blocks, or refuses."""
        async with answered_errors(context):
            call = reserve_from_message(request)
            answer: asyncio.Future[ReserveAnswer] = asyncio.get_running_loop().create_future()
            respond = _resolver(answer)
            try:
                await self._instance.run(lambda: self._parts.pool.reserve(call, respond))
                return answer_to_message(await answer)
            except asyncio.CancelledError:
                self._abort(call.transfer_id, "the sender gave up the reservation")
                raise
        raise AssertionError("answered above")

    async def Commit(
        self,
        request: pb.CommitRequest,
        context: Context,
    ) -> pb.CommitReply:
        """Answers when the blocks are visible here."""
        async with answered_errors(context):
            outcome: asyncio.Future[MemServeError | None]
            outcome = asyncio.get_running_loop().create_future()
            transfer, respond = TransferId(request.transfer_id), _resolver(outcome)
            await self._instance.run(lambda: self._parts.pool.commit(transfer, respond))
            error = await outcome
            if error is not None:
                raise error
        return pb.CommitReply()

    async def Abort(
        self,
        request: pb.AbortRequest,
        context: Context,
    ) -> pb.AbortReply:
        """Gives a reservation back; an unknown one is no error."""
        self._abort(TransferId(request.transfer_id), request.reason)
        return pb.AbortReply()

    async def Announce(
        self,
        request: pb.AnnounceRequest,
        context: Context,
    ) -> pb.AnnounceReply:
        """Answers when the bytes of a part have been delivered here."""
        async with answered_errors(context):
            outcome: asyncio.Future[MemServeError | None]
            outcome = asyncio.get_running_loop().create_future()
            self._parts.pool.announced(announcement_from_message(request), _resolver(outcome))
            error = await outcome
            if error is not None:
                raise error
        return pb.AnnounceReply()

    async def Fetch(
        self,
        request: pb.FetchRequest,
        context: Context,
    ) -> pb.FetchReply:
        """Sends the caller what it lacks of a prefix; answers once that is visible there."""
        async with answered_errors(context):
            call = fetch_from_message(request)
            self._instance.peers.learn(call.requester, request.requester_target)
            outcome: asyncio.Future[FetchAnswer | MemServeError]
            outcome = asyncio.get_running_loop().create_future()
            respond, pool = _resolver(outcome), self._parts.pool
            transfer = await self._instance.run(lambda: pool.serve_fetch(call, respond))
            try:
                answer = await outcome
            except asyncio.CancelledError:
                if transfer is not None:
                    self._instance.loop.post(lambda: pool.cancel(transfer, "the peer gave up"))
                raise
            if isinstance(answer, MemServeError):
                raise answer
            return pb.FetchReply(num_blocks=answer.num_blocks, num_bytes=answer.num_bytes)
        raise AssertionError("answered above")

    async def Pin(
        self,
        request: pb.PinRequest,
        context: Context,
    ) -> pb.PinReply:
        """Keeps what is held of a prefix, or lets it go; RESOURCE_EXHAUSTED: it is too much."""
        async with answered_errors(context):
            pool, token_ids = self._parts.pool, list(request.token_ids)
            act = pool.unpin if request.unpin else pool.pin
            num_blocks = await self._instance.run(lambda: act(token_ids, salt=request.cache_salt))
            return pb.PinReply(num_blocks=num_blocks)
        raise AssertionError("answered above")

    async def Check(
        self,
        request: pb.CheckRequest,
        context: Context,
    ) -> pb.CheckReply:
        """Runs the checks of every invariant, and counts what is held."""
        async with answered_errors(context):
            return await self._instance.run(self._check)
        raise AssertionError("answered above")

    async def Status(
        self,
        request: pb.StatusRequest,
        context: Context,
    ) -> pb.InstanceStatus:
        """Returns the state between two steps."""
        async with answered_errors(context):
            return await self._instance.status()
        raise AssertionError("answered above")

    async def Quiesce(
        self,
        request: pb.QuiesceRequest,
        context: Context,
    ) -> pb.QuiesceReply:
        """Answers when no request, transfer or lease is left."""
        async with answered_errors(context):
            async with asyncio.timeout(_patience_s(context, DEFAULT_QUIESCE_S)):
                await self._instance.quiesce()
            return pb.QuiesceReply(leases=await self._instance.run(self._num_leased))
        raise AssertionError("answered above")

    async def Drain(
        self,
        request: pb.DrainRequest,
        context: Context,
    ) -> pb.DrainReply:
        """Takes no more requests and answers when those there are have ended."""
        async with answered_errors(context):
            timeout_s = checked_seconds("timeout_s", request.timeout_s)
            await self._drain(timeout_s or DEFAULT_DRAIN_S)
        return pb.DrainReply(instance=self._instance.identity.instance)

    async def SetRole(
        self,
        request: pb.SetRoleRequest,
        context: Context,
    ) -> pb.SetRoleReply:
        """Serves on in another role; answers once the schedulers know."""
        async with answered_errors(context):
            role = parse_role(request.role)
            caching = parse_caching(request.caching, role)
            timeout_s = checked_seconds("timeout_s", request.timeout_s)
            await self._set_role(role, caching, timeout_s or DEFAULT_DRAIN_S)
        identity = self._instance.identity
        return pb.SetRoleReply(
            instance=identity.instance,
            role=identity.role,
            caching=identity.caching,
            epoch=identity.epoch,
        )

    def _abort(self, transfer: TransferId, reason: str) -> None:
        self._instance.loop.post(lambda: self._parts.pool.abort(transfer, reason))

    def _check(self) -> pb.CheckReply:
        engine, pool = self._parts.engine, self._parts.pool
        problem = ""
        try:
            engine.check()
        except AssertionError as error:
            problem = str(error) or "an invariant does not hold"
        return pb.CheckReply(
            problem=problem,
            leased_blocks=pool.num_leased,
            requests=engine.num_in_flight,
            transfers=pool.num_transfers,
            reservations=pool.num_reservations,
        )

    def _num_leased(self) -> int:
        return self._parts.pool.num_leased


def _resolver(future: "asyncio.Future[_T]") -> Callable[[_T], None]:
    """Returns what resolves `future`, once, from any thread. Call it in the asyncio loop."""
    asyncio_loop = asyncio.get_running_loop()

    def resolve(value: _T) -> None:
        if not future.done():
            future.set_result(value)

    def respond(value: _T) -> None:
        # RuntimeError: the asyncio loop is closed, so the caller is gone.
        with contextlib.suppress(RuntimeError):
            asyncio_loop.call_soon_threadsafe(resolve, value)

    return respond


def _patience_s(context: Context, default_s: float) -> float:
    """Returns the seconds until the caller's deadline, less what an answer takes."""
    left_s = context.time_remaining()
    return default_s if left_s is None else max(0.0, left_s - 0.05)
