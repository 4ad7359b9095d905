"""A channel that shows a key with every call, and is dialled afresh when certificates change.

Its callers need not know: stubs made of it stay good.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from memserve_jax.core.credentials import Credentials
from memserve_jax.proto.tls import Metadata, with_bearer

CLOSE_GRACE_S = 60.0  # for calls under way with certificates that have been replaced


class SecureChannel(grpc.aio.Channel):
    """An aio channel over others, one for each version of the certificates. Lives in one loop."""

    def __init__(self, credentials: Credentials, dial: Callable[[], grpc.aio.Channel]):
        """`dial` opens a channel with the certificates as they are when it is called."""
        self._credentials = credentials
        self._dial = dial
        self._version = self._current_version()
        self._channel = dial()
        self._calls: dict[tuple[str, str], Any] = {}  # of the present channel, by kind and method
        self._closing: set[asyncio.Task[None]] = set()

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._multicallable("unary_unary", method, arguments, options)

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._multicallable("unary_stream", method, arguments, options)

    def stream_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._multicallable("stream_unary", method, arguments, options)

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._multicallable("stream_stream", method, arguments, options)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See `grpc.aio.Channel`."""
        return self._present().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `grpc.aio.Channel`."""
        await self._present().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See `grpc.aio.Channel`."""
        await self._present().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """See `grpc.aio.Channel`."""
        await asyncio.gather(self._channel.close(grace), *self._closing)

    async def __aenter__(self) -> "SecureChannel":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _multicallable(
        self, kind: str, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        def call(*given: Any, metadata: Metadata | None = None, **named: Any) -> Any:
            channel = self._present()
            callee = self._calls.get((kind, method))
            if callee is None:
                callee = getattr(channel, kind)(method, *arguments, **options)
                self._calls[kind, method] = callee
            return callee(*given, metadata=with_bearer(self._credentials, metadata), **named)

        return call

    def _present(self) -> grpc.aio.Channel:
        """Returns the channel that has the certificates as they are now."""
        version = self._current_version()
        if version != self._version:
            self._version = version
            old, self._channel = self._channel, self._dial()
            self._calls.clear()
            closing = asyncio.get_running_loop().create_task(old.close(CLOSE_GRACE_S))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return self._channel

    def _current_version(self) -> int:
        tls = self._credentials.tls
        return 0 if tls is None else tls.version()
