"""Readings as Prometheus families: what a scrape is answered with."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.utils import floatToGoString

from memserve_jax.telemetry.metric import Distribution, Kind, Metric, Reading


def to_registry(metrics: Iterable[Metric], readings: Iterable[Reading]) -> CollectorRegistry:
    """Returns a registry that holds `readings`, and the process' own (CPU seconds, memory, files).

    Args:
      metrics: All that there are; one without a reading is named all the same.
      readings: Of these metrics.
    """
    by_metric: dict[Metric, list[Reading]] = {metric: [] for metric in metrics}
    for reading in readings:
        by_metric[reading.metric].append(reading)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Collected([_to_family(*entry) for entry in by_metric.items()]))
    return registry


class _Collected:
    """Families as a collector."""

    def __init__(self, families: Sequence[Family]):
        self._families = families

    def collect(self) -> Iterator[Family]:
        yield from self._families

    describe = collect


def _to_family(metric: Metric, readings: Sequence[Reading]) -> Family:
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for reading in readings:
            assert isinstance(reading.value, Distribution), metric.name
            bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
            cumulated = accumulate(reading.value.counts)
            buckets = list(zip(bounds, cumulated, strict=True))
            histogram.add_metric(reading.labels, buckets, reading.value.total)
        return histogram
    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = make(metric.name, metric.meaning, labels=metric.labels)
    for reading in readings:
        assert not isinstance(reading.value, Distribution), metric.name
        family.add_metric(reading.labels, reading.value)
    return family
