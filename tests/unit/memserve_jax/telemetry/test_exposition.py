"""Readings as Prometheus text, read back by Prometheus' own parser."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from memserve_jax.telemetry.exposition import to_registry
from memserve_jax.telemetry.metric import Distribution, Kind, Metric, Reading

COUNTER = Metric(
    name="memserve_things_total", kind=Kind.COUNTER, meaning="Things.", when_bad="b", labels=("x",)
)
GAUGE = Metric(name="memserve_now", kind=Kind.GAUGE, meaning="Now.", when_bad="b")
HISTOGRAM = Metric(
    name="memserve_time_seconds",
    kind=Kind.HISTOGRAM,
    meaning="Time.",
    when_bad="b",
    labels=("x",),
    buckets=(0.5, 1.0),
)


def parsed(*readings: Reading):
    text = generate_latest(to_registry([COUNTER, GAUGE, HISTOGRAM], readings)).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    return families, samples


def test_numbers_and_labels_survive():
    _, samples = parsed(
        Reading(COUNTER, ('a"\\\n',), 3),
        Reading(GAUGE, (), 0.25),
        Reading(HISTOGRAM, ("h",), Distribution((1, 2, 4), 9.5)),
    )
    assert samples["memserve_things_total", 'a"\\\n'] == 3
    assert samples["memserve_now",] == 0.25
    assert samples["memserve_time_seconds_bucket", "0.5", "h"] == 1
    assert samples["memserve_time_seconds_bucket", "1.0", "h"] == 3
    assert samples["memserve_time_seconds_bucket", "+Inf", "h"] == 7
    assert samples["memserve_time_seconds_count", "h"] == 7
    assert samples["memserve_time_seconds_sum", "h"] == 9.5


def test_a_metric_without_a_series_is_named_and_the_process_itself_is_there():
    families, samples = parsed()
    assert families["memserve_things"].type == "counter"
    assert families["memserve_time_seconds"].documentation == "Time."
    assert samples["process_cpu_seconds_total",] > 0
    assert samples["process_resident_memory_bytes",] > 0
