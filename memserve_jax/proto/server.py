"""gRPC servers and channels as every process of ours makes them: limits, health, reflection.

A server refuses bytes that are no message of ours with INVALID_ARGUMENT and goes on serving.
"""

import contextlib
import errno
import inspect
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health_aio  # pyright: ignore[reportAttributeAccessIssue]
from grpc_reflection.v1alpha import reflection

from memserve_jax.core.credentials import PLAIN, Credentials
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.security_section import SecuritySection
from memserve_jax.proto.access import AccessInterceptor
from memserve_jax.proto.malformed import explain
from memserve_jax.proto.secure_channel import SecureChannel
from memserve_jax.proto.tls import channel_options, channel_tls, server_tls

LOOPBACK = "127.0.0.1"
ANY_HOST = ("0.0.0.0", "::", "")
_SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server on the port would share it in silence
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),  # a restarted peer is dialled afresh
)


def make_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (), *, credentials: Credentials = PLAIN
) -> grpc.aio.Server:
    """Returns a server of the running asyncio loop, with our limits, not yet bound or started.

    Args:
      interceptors: Run after those that refuse callers and malformed messages.
      credentials: What callers must show, and how much they may send.
    """
    guards = () if credentials.access is None else (AccessInterceptor(credentials.access),)
    return grpc.aio.server(
        interceptors=(*guards, _MalformedInterceptor(), *interceptors),
        options=(*_SERVER_OPTIONS, *_limits(credentials.limits)),
    )


def open_channel(target: str, credentials: Credentials = PLAIN) -> grpc.aio.Channel:
    """Returns a channel to `target` (HOST:PORT) with our limits; it connects when first used.

    Args:
      target: Where to.
      credentials: What it shows and wants.

    Raises:
      ConfigError: it would leave the machine in plain text, which is not allowed.
    """
    credentials.check_target(target)
    options = (*_CHANNEL_OPTIONS, *channel_options(credentials))

    def dial() -> grpc.aio.Channel:
        tls = channel_tls(credentials)
        if tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, tls, options=options)

    if credentials.tls is None and credentials.bearer is None:
        return dial()
    return SecureChannel(credentials, dial)


def _limits(section: SecuritySection) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", section.max_message_bytes),
        ("grpc.max_send_message_length", section.max_message_bytes),
        ("grpc.max_metadata_size", section.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", section.max_metadata_bytes),
        ("grpc.max_concurrent_streams", section.max_streams),
    )


@dataclass(frozen=True, slots=True)
class Health:
    """Standard health status of one server: `""` is the process, the rest its services."""

    servicer: health_aio.HealthServicer

    async def set(self, service: str, *, serving: bool) -> None:
        """Sets whether `service` (full name) is SERVING; watchers hear of it."""
        status = health_pb2.HealthCheckResponse
        await self.servicer.set(service, status.SERVING if serving else status.NOT_SERVING)

    async def shut_down(self) -> None:
        """Says NOT_SERVING for everything from now on."""
        await self.servicer.enter_graceful_shutdown()


async def add_standard_services(server: grpc.aio.Server, services: Iterable[str]) -> Health:
    """Adds health checking and reflection to `server`, before it starts.

    Args:
      server: Not started yet.
      services: Full names, such as `memserve.v1.GenerateService`. Each starts NOT_SERVING; the
        process itself (`""`) is SERVING.
    """
    names = tuple(services)
    state = Health(health_aio.HealthServicer())
    health_pb2_grpc.add_HealthServicer_to_server(state.servicer, server)
    for name in names:
        await state.set(name, serving=False)
    reflection.enable_server_reflection((*names, HEALTH, reflection.SERVICE_NAME), server)
    return state


def bind(server: grpc.aio.Server, host: str, port: int, credentials: Credentials = PLAIN) -> int:
    """Binds `server` to `host` and `port` (0: any free one) and returns the port.

    Raises:
      ConfigError: the port is in use or may not be used, the host is not of this machine, or
        others could reach it in plain text.
    """
    check_address(host, port, credentials)
    tls = server_tls(credentials)
    try:
        if tls is None:
            return server.add_insecure_port(address(host, port))
        return server.add_secure_port(address(host, port), tls)
    except RuntimeError as error:  # lost the port between the probe and now
        raise ConfigError(f"port: {port} on {host}: {error}") from None


def address(host: str, port: int) -> str:
    """Returns `HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_address(host: str, port: int, credentials: Credentials) -> None:
    """Binds a plain socket and closes it: gRPC itself does not say why it cannot bind.

    Called before a server is made, an error leaves no server behind.

    Raises:
      ConfigError: as of `bind`.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"host: {host!r}: {error.strerror}, allowed: a local address") from None
    family, kind, protocol, _, place = found[0]
    with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"port: {port} is in use on {host}, allowed: a free port, or 0 for any"
                ) from None
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(f"host: {host!r}: allowed: an address of this machine") from None
            raise ConfigError(f"port: {port} on {host}: {error.strerror}") from None
    credentials.check_host(host)


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a request whose bytes could not be read, until its handler refuses it."""

    reason: str


class _MalformedInterceptor(grpc.aio.ServerInterceptor):
    """Turns bytes that do not parse into INVALID_ARGUMENT (gRPC alone says UNKNOWN)."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the handler with a forgiving parser and a check before the method."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler
        parse = _forgiving(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _refusing(handler.unary_stream), parse, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _refusing(handler.unary_unary), parse, handler.response_serializer
        )


def _forgiving(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_explain(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            # Generated code hands over `Kind.FromString`.
            return _Malformed(explain(getattr(parse, "__self__"), raw))  # noqa: B009

    return parse_or_explain


def _refusing(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def answer(request: Any, context: Any) -> Any:
        if isinstance(request, _Malformed):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, request.reason)
        return await method(request, context)

    async def stream(request: Any, context: Any) -> Any:
        if isinstance(request, _Malformed):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, request.reason)
        async for response in method(request, context):
            yield response

    return stream if inspect.isasyncgenfunction(method) else answer
