"""A status message as series: every number of it, under the instance's name."""

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.telemetry import instance_metrics as metrics
from memserve_jax.telemetry.instance_readings import status_readings

STATUS = pb.InstanceStatus(
    instance="p0",
    role="prefill",
    state="serving",
    model="tiny",
    caching="pd_caching_3",
    tensor_parallelism=2,
    block_size_tokens=16,
    running=3,
    waiting=4,
    queued_prefill_tokens=500,
    prefill_tokens_per_s=1000.5,
    tiers=[
        pb.TierStatus(
            tier="hbm",
            num_blocks=100,
            free_blocks=20,
            leased_blocks=50,
            indexed_blocks=60,
            pinned_blocks=5,
        ),
        pb.TierStatus(tier="disk"),
    ],
    counters=pb.Counters(cached_tokens=7, kv_transfer_s=0.25),
    transports=[pb.TransportStatus(transport="tcp", calls=2, bytes=4096, seconds=0.5)],
    kernel_fallbacks=[
        pb.KernelFallback(op="paged_attention", reason="8 rows", traces=2),
        pb.KernelFallback(op="paged_attention", reason="16 rows", traces=3),
    ],
)


def values(status: pb.InstanceStatus) -> dict[tuple[str, ...], float]:
    found = list(status_readings(status))
    assert all(len(reading.labels) == len(reading.metric.labels) for reading in found)
    assert all(reading.labels[:2] == ("p0", "prefill") for reading in found)
    series = {(reading.metric.name, *reading.labels[2:]): reading.value for reading in found}
    assert len(series) == len(found), "one series twice"
    return series


def test_numbers_arrive():
    found = values(STATUS)
    for key, value in {
        ("memserve_prefix_cache_hits_total",): 7,
        ("memserve_kv_transfer_seconds_total",): 0.25,
        ("memserve_num_preemptions_total",): 0,
        ("memserve_num_requests_running",): 3,
        ("memserve_num_requests_waiting",): 4,
        ("memserve_queued_prefill_tokens",): 500,
        ("memserve_prefill_tokens_per_second",): 1000.5,
        ("memserve_instance_serving",): 1,
        ("memserve_instance_info", "tiny", "pd_caching_3", "2", "16"): 1,
        ("memserve_kv_cache_usage_ratio", "hbm"): 0.5,
        ("memserve_kv_blocks", "hbm"): 100,
        ("memserve_kv_blocks_free", "hbm"): 20,
        ("memserve_kv_blocks_leased", "hbm"): 50,
        ("memserve_kv_blocks_indexed", "hbm"): 60,
        ("memserve_kv_blocks_pinned", "hbm"): 5,
        ("memserve_transport_bytes_total", "tcp"): 4096,
        ("memserve_transport_calls_total", "tcp"): 2,
        ("memserve_transport_seconds_total", "tcp"): 0.5,
        ("memserve_kernel_fallback_traces", "paged_attention"): 5,
    }.items():
        assert found[key] == value, key


def test_a_tier_that_is_not_there_has_no_series():
    assert not [key for key in values(STATUS) if "disk" in key[1:]]


def test_an_instance_that_drains_does_not_serve():
    status = pb.InstanceStatus()
    status.CopyFrom(STATUS)
    status.state = "draining"
    assert values(status)[(metrics.SERVING.name,)] == 0
