"""A tracer that records with OpenTelemetry. Loaded by `open_tracer` only: an optional extra."""

import asyncio
import contextlib
import importlib
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.telemetry_sections import TracingSection
from memserve_jax.telemetry.request_context import Traced, current_request_id
from memserve_jax.telemetry.tracing import Attributes

REQUEST_ID = "memserve.request_id"
_OTLP = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
_W3C = TraceContextTextMapPropagator()


class OtelSpan:
    """A span under way."""

    def __init__(self, span: trace.Span):
        self._span = span

    def set(self, attributes: Attributes) -> None:
        """See `Span`."""
        self._span.set_attributes(dict(attributes))


class OtelTracer:
    """See `Tracer`."""

    def __init__(self, section: TracingSection, process: str):
        """Sends spans as `section` says, under the name of `process`.

        Raises:
          ConfigError: the file cannot be written.
          ImportError: the exporter is not installed.
        """
        name = {"service.name": f"memserve-{process}", "process.pid": os.getpid()}
        self._provider = TracerProvider(
            resource=Resource.create(name),
            sampler=ParentBased(TraceIdRatioBased(section.sample_ratio)),
            shutdown_on_exit=False,
        )
        self._files = contextlib.ExitStack()
        self._provider.add_span_processor(self._processor(section, process))
        self._tracer = self._provider.get_tracer("memserve_jax")

    @contextlib.contextmanager
    def serve(self, name: str, context: Any) -> Iterator[OtelSpan]:
        """See `Tracer`."""
        given = dict(context.invocation_metadata() or ())
        parent = _W3C.extract(given, context=Context())
        span = self._tracer.start_span(name, context=parent, kind=SpanKind.SERVER)
        with self._current(span) as current:
            yield current

    @contextlib.contextmanager
    def span(self, name: str, *, calls: bool = False) -> Iterator[OtelSpan]:
        """See `Tracer`."""
        kind = SpanKind.CLIENT if calls else SpanKind.INTERNAL
        with self._current(self._tracer.start_span(name, kind=kind)) as current:
            yield current

    def past(
        self, name: str, attributes: Attributes, *, began_s: float, ended_s: float = 0.0
    ) -> None:
        """See `Tracer`."""
        now_ns = time.time_ns()
        began_ns = now_ns - round(began_s * 1e9)
        parent = trace.get_current_span()
        if isinstance(parent, ReadableSpan) and parent.start_time is not None:
            began_ns = max(began_ns, parent.start_time)  # the two clocks differ by a little
        span = self._tracer.start_span(name, start_time=began_ns)
        span.set_attributes({REQUEST_ID: current_request_id(), **attributes})
        span.end(max(began_ns, now_ns - round(ended_s * 1e9)))

    def close(self) -> None:
        """See `Tracer`."""
        self._provider.shutdown()
        self._files.close()

    @contextlib.contextmanager
    def _current(self, span: trace.Span) -> Iterator[OtelSpan]:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, context=trace.set_span_in_context(span, Context()))
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        try:
            with (
                trace.use_span(span, record_exception=False, set_status_on_exception=False),
                Traced(trace_id, tuple(carrier.items())),
            ):
                yield OtelSpan(span)
        except (asyncio.CancelledError, GeneratorExit):
            span.set_attribute("memserve.cancelled", True)
            raise
        except BaseException as error:
            span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
            raise
        finally:
            span.set_attribute(REQUEST_ID, current_request_id())
            span.end()

    def _processor(self, section: TracingSection, process: str) -> SpanProcessor:
        if section.exporter == "otlp":
            exporter = importlib.import_module(_OTLP).OTLPSpanExporter
            secure = section.endpoint.startswith("https://")
            return BatchSpanProcessor(exporter(endpoint=section.endpoint, insecure=not secure))
        path = pathlib.Path(section.folder) / f"{process}-{os.getpid()}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            out = self._files.enter_context(path.open("w", encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"tracing.folder: {path}: {error.strerror}") from None
        exporter = ConsoleSpanExporter(out=out, formatter=lambda span: f"{span.to_json(None)}\n")
        return SimpleSpanProcessor(exporter)
