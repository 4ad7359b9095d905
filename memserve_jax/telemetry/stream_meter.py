"""The times of one streamed answer: first token, between tokens, the whole."""

from memserve_jax.telemetry.tally import Histogram


class StreamHistograms:
    """Where the times of answers go."""

    __slots__ = ("first_token", "inter_token", "whole")

    def __init__(self, *, first_token: Histogram, inter_token: Histogram, whole: Histogram):
        self.first_token = first_token
        self.inter_token = inter_token
        self.whole = whole


class StreamMeter:
    """Measures one answer as it passes."""

    __slots__ = ("_arrival_s", "_histograms", "_last_s")

    def __init__(self, histograms: StreamHistograms, arrival_s: float):
        """For a request that arrived at `arrival_s`; all times are of one clock."""
        self._histograms = histograms
        self._arrival_s = arrival_s
        self._last_s: float | None = None  # when the last token passed

    def passed(self, num_tokens: int, now_s: float) -> None:
        """Takes note of new tokens; those that come together share the time since the last."""
        if not num_tokens:
            return
        if self._last_s is None:
            self._histograms.first_token.observe(now_s - self._arrival_s)
            num_tokens, self._last_s = num_tokens - 1, now_s
        if num_tokens:
            each_s = (now_s - self._last_s) / num_tokens
            self._histograms.inter_token.observe(each_s, times=num_tokens)
            self._last_s = now_s

    def finished(self, now_s: float) -> None:
        """Takes note of the end of a whole answer."""
        self._histograms.whole.observe(now_s - self._arrival_s)
