"""All that one process tells about itself while it serves: metrics and traces."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from memserve_jax.core.config import Config
from memserve_jax.telemetry.endpoint import MetricsEndpoint
from memserve_jax.telemetry.metric import Metric, Reading
from memserve_jax.telemetry.tracing import NO_TRACER, Tracer, open_tracer


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTelemetry:
    """Where a server's metrics and spans go. By default: nowhere."""

    metrics: MetricsEndpoint | None = None
    tracer: Tracer = NO_TRACER

    @property
    def target(self) -> str:
        """HOST:PORT of the metrics; empty: there are none."""
        return "" if self.metrics is None else self.metrics.target

    def show(self, metrics: Iterable[Metric], source: Callable[[], Iterable[Reading]]) -> None:
        """Shows what `source`, called in the asyncio loop, reads of `metrics`."""
        if self.metrics is not None:
            self.metrics.add(metrics, source)

    def hide(self, source: Callable[[], Iterable[Reading]]) -> None:
        """Shows the readings of `source` no more."""
        if self.metrics is not None:
            self.metrics.remove(source)

    async def close(self) -> None:
        """Listens no more, and sends what is left."""
        if self.metrics is not None:
            await self.metrics.close()
        await asyncio.to_thread(self.tracer.close)


SILENT = ProcessTelemetry()


def open_telemetry(config: Config, process: str) -> ProcessTelemetry:
    """Returns the telemetry of this process, open; call it in the running asyncio loop.

    Args:
      config: Its sections `metrics` and `tracing`.
      process: Its name in the cluster, such as `scheduler` or `p0`.

    Raises:
      ConfigError: a port in use, a host of elsewhere, an extra that is not installed.
    """
    tracer = open_tracer(config.tracing, process)
    try:
        return ProcessTelemetry(metrics=MetricsEndpoint(config.metrics), tracer=tracer)
    except BaseException:
        tracer.close()
        raise
