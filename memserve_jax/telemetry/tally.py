"""Counters and histograms that grow where things happen. One thread owns a tally."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from memserve_jax.telemetry.metric import Distribution, Kind, Metric, Reading

MAX_SERIES = 2048  # of one metric; what comes on top is counted under `OTHER`
OTHER = "other"


class Histogram:
    """Values sorted into buckets."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]):
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: int | float, times: int = 1) -> None:
        """Takes `value` in, so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    @property
    def distribution(self) -> Distribution:
        """What it holds now."""
        return Distribution(tuple(self._counts), self._total)


class Tally:
    """The counters and histograms of one scheduler, or of one instance."""

    def __init__(self, metrics: Iterable[Metric], *, prefix: tuple[str, ...] = ()):
        """Starts at zero.

        Args:
          metrics: Counters and histograms; others cannot be counted here.
          prefix: Values of the first labels of every metric: whose tally this is.
        """
        self._prefix = prefix
        self._counts: dict[Metric, dict[tuple[str, ...], int | float]] = {}
        self._histograms: dict[Metric, dict[tuple[str, ...], Histogram]] = {}
        for metric in metrics:
            has_series = len(metric.labels) == len(prefix)  # then it is there from the start
            if metric.kind is Kind.COUNTER:
                self._counts[metric] = {(): 0} if has_series else {}
            else:
                assert metric.kind is Kind.HISTOGRAM, metric.name
                fresh = Histogram(metric.buckets)
                self._histograms[metric] = {(): fresh} if has_series else {}

    def add(self, metric: Metric, *labels: str, amount: int | float = 1) -> None:
        """Counts `amount` more of a counter.

        Args:
          metric: The counter.
          *labels: Values of its labels, those of the prefix left out.
          amount: At least 0.
        """
        series = self._counts[metric]
        labels = self._bounded(metric, labels, len(series), labels in series)
        series[labels] = series.get(labels, 0) + amount

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """Returns a histogram to observe values with; labels as for `add`."""
        series = self._histograms[metric]
        labels = self._bounded(metric, labels, len(series), labels in series)
        if labels not in series:
            series[labels] = Histogram(metric.buckets)
        return series[labels]

    def observe(self, metric: Metric, value: int | float, *labels: str) -> None:
        """Takes `value` into a histogram; labels as for `add`."""
        self.histogram(metric, *labels).observe(value)

    def readings(self) -> Iterator[Reading]:
        """Yields every series as it is now."""
        for metric, counts in self._counts.items():
            for labels, count in counts.items():
                yield Reading(metric, self._prefix + labels, count)
        for metric, histograms in self._histograms.items():
            for labels, histogram in histograms.items():
                yield Reading(metric, self._prefix + labels, histogram.distribution)

    def _bounded(
        self, metric: Metric, labels: tuple[str, ...], num_series: int, is_known: bool
    ) -> tuple[str, ...]:
        if is_known:
            return labels
        wanted = len(metric.labels) - len(self._prefix)
        assert len(labels) == wanted, f"{metric.name}: got {len(labels)} labels, wanted {wanted}"
        return labels if num_series < MAX_SERIES else (OTHER,) * wanted
