"""The sections of the config that say what processes tell about themselves."""

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
