"""The sections of the config that say what processes tell about themselves."""

import typing

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MetricsSection:
    """Prometheus metrics of every process, over HTTP.

    Under `serve --processes` a port is the scheduler's, and the instances take those after it.
    """

    port: int | None = Field(default=0, ge=0, le=65535)  # 0: any free one; None: no metrics
    host: str = "127.0.0.1"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TracingSection:
    """OpenTelemetry traces; needs the extra `memserve-jax[trace]`."""

    exporter: typing.Literal["otlp", "file"] | None = None  # None: no traces
    endpoint: str = "http://127.0.0.1:4317"  # otlp: of a collector, by gRPC
    folder: str = "traces"  # file: for one file of JSON lines a process
    sample_ratio: float = Field(default=1.0, ge=0, le=1)  # of requests that come untraced


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LogSection:
    """What goes to stderr."""

    format: typing.Literal["text", "json"] = "text"
    level: typing.Literal["debug", "info", "warning", "error"] = "info"
    requests: bool = False  # a line for every request that ends at the scheduler
