"""The two ends of a proxy's measurement, as processes: an instance that answers at once, a relay.

`python -m memserve_jax.bench.proxy_process instance [--scheduler HOST:PORT]` speaks our
GenerateService and InstanceService without a model; a request's `priority` says how many tokens a
message carries. `... relay --to HOST:PORT` passes bytes on, and does nothing else: what a proxy in
Python over grpc.aio costs at least. Both print `ready grpc=HOST:PORT` and end with SIGTERM.
"""

import asyncio
import contextlib
import functools
import signal
from collections.abc import Sequence
from typing import Any

import click
import grpc
import grpc.aio

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import (
    ControlServiceStub,
    InstanceServiceServicer,
    add_InstanceServiceServicer_to_server,
)
from memserve_jax.proto.server import bind, make_server, open_channel

GENERATE = "/memserve.v1.GenerateService/Generate"
_HOST = "127.0.0.1"
_SERVICE = "memserve.v1.GenerateService"


@functools.lru_cache(maxsize=64)
def answer(num_tokens: int, tokens_per_message: int) -> tuple[bytes, ...]:
    """Returns the messages of an answer, as they are on the wire."""
    messages: list[bytes] = []
    for first in range(0, num_tokens, tokens_per_message):
        ids = list(range(first, min(first + tokens_per_message, num_tokens)))
        message = pb.GenerateResponse(token_ids=ids, first_index=first, text="word " * len(ids))
        if ids[-1] == num_tokens - 1:
            message.finish_reason = pb.LENGTH
            message.usage.completion_tokens = num_tokens
        messages.append(message.SerializeToString())
    return tuple(messages)


async def _answer_at_once(request: bytes, context: Any) -> None:
    asked = pb.GenerateRequest.FromString(request)
    for message in answer(asked.sampling.max_tokens, max(1, asked.priority)):
        await context.write(message)


class _Relay:
    """Passes on what comes."""

    def __init__(self, target: str):
        self._call = open_channel(target).unary_stream(GENERATE)

    async def pass_on(self, request: bytes, context: Any) -> None:
        """Streams the answer to `request` from the other side."""
        async for response in self._call(request):
            await context.write(response)


class _Instance(InstanceServiceServicer):
    """Says how it is."""

    def __init__(self, status: pb.InstanceStatus):
        self._status = status

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.InstanceStatus:
        """Returns the status."""
        del request, context
        return self._status


def _raw_server(behaviour: Any) -> grpc.aio.Server:
    """Returns a server whose Generate takes and gives bytes."""
    server = make_server()
    handlers = {"Generate": grpc.unary_stream_rpc_method_handler(behaviour)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    return server


async def _until_told(server: grpc.aio.Server, port: int) -> None:
    click.echo(f"ready grpc={_HOST}:{port}")
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    await server.stop(0)


async def _serve_instance(instance: str, model: str, scheduler: str | None) -> None:
    server = _raw_server(_answer_at_once)
    status = pb.InstanceStatus(
        instance=instance,
        epoch=1,
        role="colocated",
        state="serving",
        model=model,
        tensor_parallelism=1,
        block_size_tokens=16,
        caching="on",
        max_context_tokens=1 << 16,
    )
    add_InstanceServiceServicer_to_server(_Instance(status), server)
    port = bind(server, _HOST, 0)
    await server.start()
    status.target = f"{_HOST}:{port}"
    reporting = asyncio.create_task(_report(status, scheduler)) if scheduler else None
    await _until_told(server, port)
    if reporting is not None:
        reporting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reporting


async def _report(status: pb.InstanceStatus, scheduler: str) -> None:
    async with open_channel(scheduler) as channel:
        control: Any = ControlServiceStub(channel)  # pyright: ignore[reportArgumentType]
        reply = await control.Register(pb.RegisterRequest(status=status), wait_for_ready=True)
        while True:
            await asyncio.sleep(reply.heartbeat_s)
            await control.Heartbeat(pb.HeartbeatRequest(status=status))


async def _serve_relay(target: str) -> None:
    server = _raw_server(_Relay(target).pass_on)
    port = bind(server, _HOST, 0)
    await server.start()
    await _until_told(server, port)


@click.group()
def _main() -> None:
    """Ends of a measurement."""


@_main.command()
@click.option("--name", default="c0")
@click.option("--model", required=True, help="What the scheduler calls its model.")
@click.option("--scheduler", help="HOST:PORT to register at.")
def instance(name: str, model: str, scheduler: str | None) -> None:
    """Answer every request at once."""
    asyncio.run(_serve_instance(name, model, scheduler))


@_main.command()
@click.option("--to", "target", required=True, help="HOST:PORT.")
def relay(target: str) -> None:
    """Pass bytes on."""
    asyncio.run(_serve_relay(target))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of the two."""
    _main.main(arguments, standalone_mode=False)


if __name__ == "__main__":
    main()
