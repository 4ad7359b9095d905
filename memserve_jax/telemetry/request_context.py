"""Which request the code that runs now is working for: known to its logs, traces and calls.

Set once in the asyncio task of a call; every task that is made from it inherits it.
"""

from contextvars import ContextVar

Metadata = tuple[tuple[str, str], ...]

_REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_TRACE_ID: ContextVar[str] = ContextVar("trace_id", default="")
_OUTGOING: ContextVar[Metadata | None] = ContextVar("outgoing", default=None)


def work_for(request_id: str) -> None:
    """Says that this task, from now on, works for `request_id`."""
    _REQUEST_ID.set(request_id)


def current_request_id() -> str:
    """Returns the request that this task works for; empty: none."""
    return _REQUEST_ID.get()


def current_trace_id() -> str:
    """Returns the trace that this task belongs to, 32 hexadecimal digits; empty: none."""
    return _TRACE_ID.get()


def outgoing_metadata() -> Metadata | None:
    """Returns what a gRPC call has to carry for its trace to go on there; None: no trace."""
    return _OUTGOING.get()


class Traced:
    """Within it, calls and logs belong to a span. A context, once."""

    def __init__(self, trace_id: str, outgoing: Metadata):
        self._values = trace_id, outgoing

    def __enter__(self) -> None:
        trace_id, outgoing = self._values
        self._tokens = _TRACE_ID.set(trace_id), _OUTGOING.set(outgoing)

    def __exit__(self, *_: object) -> None:
        trace_token, outgoing_token = self._tokens
        _TRACE_ID.reset(trace_token)
        _OUTGOING.reset(outgoing_token)
