"""Who may call what: health is for everybody, answers for clients, all else for the cluster."""

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from memserve_jax.core.access import Access, Standing

_NEEDED = {  # service -> the least standing of its callers; of every other: MEMBER
    "grpc.health.v1.Health": Standing.STRANGER,
    "grpc.reflection.v1alpha.ServerReflection": Standing.CLIENT,
    "memserve.v1.GenerateService": Standing.CLIENT,
}
_LABEL: ContextVar[str] = ContextVar("client_label", default="")

_log = logging.getLogger(__name__)


def client_label() -> str:
    """Returns the label of the API key that the client whom this task serves has shown.

    Empty: it is a member, which may ask for many, or nobody need show one.
    """
    return _LABEL.get()


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Ends calls of those who may not make them, before anything else looks at them."""

    def __init__(self, access: Access):
        self._access = access
        self._num_refused = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the handler, with a look at the caller before it."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        needed = _NEEDED.get(method.strip("/").rpartition("/")[0], Standing.MEMBER)
        if handler is None or needed is Standing.STRANGER:
            return handler
        check = functools.partial(self._check, method, needed)
        kind = "stream_" if handler.request_streaming else "unary_"
        kind += "stream" if handler.response_streaming else "unary"
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        guarded = _guarded(getattr(handler, kind), check)
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    async def _check(self, method: str, needed: Standing, context: Any) -> None:
        bearer = _bearer(context.invocation_metadata())
        names = {name.decode("utf-8", "replace") for name in _names(context)}
        caller = self._access.caller(bearer, names)
        if caller.standing >= needed:
            _LABEL.set(caller.label if caller.standing is Standing.CLIENT else "")
            return
        self._num_refused += 1
        if self._num_refused & (self._num_refused - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            _log.warning(
                "refused %s to %s %s (%d calls refused so far)",
                method,
                context.peer(),
                caller.label or "without a key",
                self._num_refused,
            )
        if caller.standing is Standing.STRANGER:
            got = "nothing" if bearer is None else "an unknown key"
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, f"authorization: got {got}, allowed: Bearer KEY"
            )
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{method}: allowed for the cluster and its operators alone",
        )


def _bearer(metadata: Any) -> str | None:
    """Returns the key in `authorization: Bearer KEY`; None where there is none, or several."""
    found = [value for key, value in metadata or () if key == "authorization"]
    if len(found) != 1 or not isinstance(found[0], str):
        return None
    scheme, _, secret = found[0].partition(" ")
    return secret.strip() if scheme.lower() == "bearer" and secret.strip() else None


def _names(context: Any) -> list[bytes]:
    """Returns the DNS names in the caller's certificate, which gRPC has verified."""
    return list(context.auth_context().get("peer_dns", ()))


def _guarded(method: Callable[[Any, Any], Any], check: Callable[[Any], Awaitable[None]]) -> Any:
    async def answer(request: Any, context: Any) -> Any:
        await check(context)
        return await method(request, context)

    async def stream(request: Any, context: Any) -> Any:
        await check(context)
        async for response in method(request, context):
            yield response

    return stream if inspect.isasyncgenfunction(method) else answer
