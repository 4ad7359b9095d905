"""An instance without a model: scripted tokens over real gRPC, held back until told to go on."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import (
    ControlServiceStub,
    GenerateServiceServicer,
    InstanceServiceServicer,
    add_GenerateServiceServicer_to_server,
    add_InstanceServiceServicer_to_server,
)
from memserve_jax.proto.server import bind, make_server, open_channel


def make_status(
    instance: str = "c0",
    *,
    role: str = "colocated",
    epoch: int = 1,
    target: str = "127.0.0.1:1",
    caching: str = "",
    block_size_tokens: int = 16,
    **fields: Any,
) -> pb.InstanceStatus:
    """Returns the status of a healthy instance; `caching` defaults to what suits the role."""
    return pb.InstanceStatus(
        instance=instance,
        epoch=epoch,
        role=role,
        state=fields.pop("state", "serving"),
        target=target,
        model=fields.pop("model", "tiny"),
        tensor_parallelism=fields.pop("tensor_parallelism", 1),
        block_size_tokens=block_size_tokens,
        caching=caching or ("on" if role == "colocated" else "pd_caching_3"),
        **fields,
    )


class FakeInstance(GenerateServiceServicer, InstanceServiceServicer):
    """Answers every request with `token_ids`, one a message, as an instance would.

    A request that says what it was answered before gets the rest.

    Set the public attributes before a request comes:
      token_ids: The answer.
      hold_before: Token indices that wait for `go_on`, which lets one of them pass.
      script: Messages sent as they are, in place of the answer.
      error: Status that a request ends with, at once.
      leases: What `Quiesce` reports, once `is_quiet` is set.
    """

    def __init__(self, instance: str = "c0", **status: Any):
        self.status = make_status(instance, **status)
        self.token_ids: Sequence[int] = (11, 12, 13)
        self.hold_before: set[int] = set()
        self.script: Sequence[pb.GenerateResponse] | None = None
        self.error: tuple[grpc.StatusCode, str] | None = None
        self.leases = 0
        self.is_quiet = asyncio.Event()
        self.is_quiet.set()
        self.go_on = asyncio.Event()
        self.requests: list[pb.GenerateRequest] = []
        self.deadlines_s: list[float | None] = []
        self.drains: list[pb.DrainRequest] = []
        self.recasts: list[pb.SetRoleRequest] = []
        self.drained_as: tuple[grpc.StatusCode, str] | None = None
        self.holding = asyncio.Event()  # a request waits for `go_on`
        self.cancelled = asyncio.Event()  # a request was cancelled
        self._server: grpc.aio.Server | None = None
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> "FakeInstance":
        self._server = make_server()
        add_GenerateServiceServicer_to_server(self, self._server)
        add_InstanceServiceServicer_to_server(self, self._server)
        port = bind(self._server, "127.0.0.1", 0)
        await self._server.start()
        self.status.target = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.die()
        for channel in self._channels.values():
            await channel.close()

    async def die(self) -> None:
        """Ends the server as a crash would: without a word, calls broken off."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def register(self, scheduler: str) -> pb.RegisterReply:
        """Registers at the scheduler HOST:PORT."""
        message = pb.RegisterRequest(status=self.status)
        return await self._control(scheduler).Register(message, timeout=10)

    async def heartbeat(self, scheduler: str) -> list[str]:
        """Sends a heartbeat and returns the members."""
        message = pb.HeartbeatRequest(status=self.status)
        reply = await self._control(scheduler).Heartbeat(message, timeout=10)
        return list(reply.members)

    async def deregister(self, scheduler: str) -> None:
        """Leaves the scheduler."""
        message = pb.DeregisterRequest(instance=self.status.instance, epoch=self.status.epoch)
        await self._control(scheduler).Deregister(message, timeout=10)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:
        """Plays the script."""
        self.requests.append(request)
        self.deadlines_s.append(context.time_remaining())
        if self.error is not None:
            await context.abort(*self.error)
        try:
            for response in self._responses(request):
                if response.first_index in self.hold_before:
                    self.holding.set()
                    await self.go_on.wait()
                    self.holding.clear()
                    self.go_on.clear()
                await context.write(response)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.InstanceStatus:
        """Returns the status."""
        return self.status

    async def Quiesce(self, request: pb.QuiesceRequest, context: Any) -> pb.QuiesceReply:
        """Answers once `is_quiet` is set."""
        await self.is_quiet.wait()
        return pb.QuiesceReply(leases=self.leases)

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainReply:
        """Notes the wish."""
        self.drains.append(request)
        if self.drained_as is not None:
            await context.abort(*self.drained_as)
        return pb.DrainReply(instance=self.status.instance)

    async def SetRole(self, request: pb.SetRoleRequest, context: Any) -> pb.SetRoleReply:
        """Begins another life in the new role, registered where it was; or `drained_as`."""
        self.recasts.append(request)
        if self.drained_as is not None:
            await context.abort(*self.drained_as)
        self.status.role, self.status.caching = request.role, request.caching
        self.status.epoch += 1
        for scheduler in list(self._channels):
            await self.register(scheduler)
        return pb.SetRoleReply(
            instance=self.status.instance,
            role=request.role,
            caching=request.caching,
            epoch=self.status.epoch,
        )

    def _responses(self, request: pb.GenerateRequest) -> Sequence[pb.GenerateResponse]:
        if self.script is not None:
            return self.script
        messages = [
            pb.GenerateResponse(
                request_id=request.request_id,
                token_ids=[token],
                first_index=index,
                text=f"<{token}>",
            )
            for index, token in enumerate(self.token_ids)
        ]
        messages = messages[len(request.resume.token_ids) :]
        begun = pb.Begun(cached_tokens=request.route.cached_tokens, queue_s=0.25)
        messages[0].begun.CopyFrom(begun)
        last = messages[-1]
        last.finish_reason = pb.LENGTH
        last.usage.cached_tokens = request.route.cached_tokens
        last.timing.queue_s = 0.25
        last.timing.prefill_instance = request.route.prefill_instance
        last.timing.decode_instance = self.status.instance
        last.timing.kv_blocks_moved = 5
        return messages

    def _control(self, scheduler: str) -> ControlServiceStub:
        if scheduler not in self._channels:
            self._channels[scheduler] = open_channel(scheduler)
        return ControlServiceStub(self._channels[scheduler])  # pyright: ignore[reportArgumentType]
