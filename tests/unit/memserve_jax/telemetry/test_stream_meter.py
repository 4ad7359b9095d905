"""The times of an answer, message by message."""

from memserve_jax.telemetry.metric import Distribution
from memserve_jax.telemetry.stream_meter import StreamHistograms, StreamMeter
from memserve_jax.telemetry.tally import Histogram


def histograms() -> StreamHistograms:
    return StreamHistograms(
        first_token=Histogram((1.0, 5.0)),
        inter_token=Histogram((1.0, 2.0)),
        whole=Histogram((10.0,)),
    )


def test_every_token_after_the_first_counts_once():
    found = histograms()
    meter = StreamMeter(found, arrival_s=100.0)
    meter.passed(0, 101.0)  # text without tokens
    meter.passed(1, 103.0)
    meter.passed(1, 104.5)
    meter.passed(3, 107.5)
    meter.finished(108.0)
    assert found.first_token.distribution == Distribution((0, 1, 0), 3.0)
    assert found.inter_token.distribution == Distribution((3, 1, 0), 4.5)
    assert found.whole.distribution == Distribution((1, 0), 8.0)


def test_tokens_that_come_with_the_first_took_no_time():
    found = histograms()
    StreamMeter(found, arrival_s=0.0).passed(3, 2.0)
    assert found.first_token.distribution.counts == (0, 1, 0)
    assert found.inter_token.distribution == Distribution((2, 0, 0), 0.0)
