"""Traces of requests: what instances and schedulers call, whether anyone records it or not.

Spans of one request, from the client's `traceparent` (W3C) on or from a new trace:

    request               scheduler, a server span
      route               which instances, and why
      attempt             a call of an instance; another one after a failure
        answer            decode or colocated instance, a server span
          queue, compute  colocated: before the first step, and from there to the first token
          call_prefill    decode: the call of the prefill instance
            prefill       prefill instance, a server span
              queue, compute
              transfer    from the first token until the KV is on the decode instance
          decode          from the first token to the last

OpenTelemetry is an extra (`memserve-jax[trace]`); it is imported when the config names an
exporter and not otherwise, so that it costs nothing where nobody asked for it.
"""

import contextlib
import importlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.telemetry_sections import TracingSection

Attributes = Mapping[str, str | int | float]


@runtime_checkable
class Span(Protocol):
    """One piece of work."""

    def set(self, attributes: Attributes) -> None:
        """Adds to what is known of it."""
        ...


@runtime_checkable
class Tracer(Protocol):
    """Makes spans. Those made in one asyncio task nest."""

    def serve(self, name: str, context: Any) -> AbstractContextManager[Span]:
        """Spans the answering of a gRPC call (`context` is the servicer's), whoever traces it."""
        ...

    def span(self, name: str, *, calls: bool = False) -> AbstractContextManager[Span]:
        """Spans a piece of the work at hand; `calls`: of another process."""
        ...

    def past(
        self, name: str, attributes: Attributes, *, began_s: float, ended_s: float = 0.0
    ) -> None:
        """Notes a piece of the work at hand that began and ended so many seconds ago."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


class _NoSpan:
    def set(self, attributes: Attributes) -> None:
        """Notes nothing."""


class NoTracer:
    """Records nothing."""

    def serve(self, name: str, context: Any) -> AbstractContextManager[Span]:
        """See `Tracer`."""
        del name, context
        return contextlib.nullcontext(_NoSpan())

    def span(self, name: str, *, calls: bool = False) -> AbstractContextManager[Span]:
        """See `Tracer`."""
        del name, calls
        return contextlib.nullcontext(_NoSpan())

    def past(
        self, name: str, attributes: Attributes, *, began_s: float, ended_s: float = 0.0
    ) -> None:
        """See `Tracer`."""

    def close(self) -> None:
        """See `Tracer`."""


NO_TRACER = NoTracer()


def open_tracer(section: TracingSection, process: str) -> Tracer:
    """Returns what records the spans of this process, as the config has it.

    Args:
      section: Where spans go.
      process: Its name in the cluster, such as `scheduler` or `p0`.

    Raises:
      ConfigError: an exporter whose packages are not installed, or a file that cannot be written.
    """
    if section.exporter is None:
        return NO_TRACER
    try:
        recorder = importlib.import_module("memserve_jax.telemetry.otel_tracer")
        return recorder.OtelTracer(section, process)
    except ImportError as error:
        raise ConfigError(
            f"tracing.exporter: {section.exporter} needs {error.name}, which is not installed: "
            "pip install 'memserve-jax[trace]'"
        ) from None
