"""An instance's status message as metrics."""

from collections import Counter
from collections.abc import Iterator

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.telemetry import instance_metrics as metrics
from memserve_jax.telemetry.counter_metrics import COUNTERS
from memserve_jax.telemetry.metric import Reading


def status_readings(status: pb.InstanceStatus) -> Iterator[Reading]:
    """Yields every series that `status` tells of."""
    whose = (status.instance, status.role)
    for field, metric in COUNTERS.items():
        yield Reading(metric, whose, getattr(status.counters, field))
    yield Reading(metrics.RUNNING, whose, status.running)
    yield Reading(metrics.WAITING, whose, status.waiting)
    yield Reading(metrics.QUEUED_TOKENS, whose, status.queued_prefill_tokens)
    yield Reading(metrics.PREFILL_RATE, whose, status.prefill_tokens_per_s)
    yield Reading(metrics.SERVING, whose, status.state == "serving")
    facts = (status.model, status.caching)
    sizes = (str(status.tensor_parallelism), str(status.block_size_tokens))
    yield Reading(metrics.INFO, (*whose, *facts, *sizes), 1)
    for tier in status.tiers:
        yield from _tier_readings((*whose, tier.tier), tier)
    for transport in status.transports:
        labels = (*whose, transport.transport)
        yield Reading(metrics.TRANSPORT_BYTES, labels, transport.bytes)
        yield Reading(metrics.TRANSPORT_CALLS, labels, transport.calls)
        yield Reading(metrics.TRANSPORT_SECONDS, labels, transport.seconds)
    fallbacks: Counter[str] = Counter()  # by op: reasons tell of shapes, of which there are many
    for fallback in status.kernel_fallbacks:
        fallbacks[fallback.op] += fallback.traces
    for op, traces in fallbacks.items():
        yield Reading(metrics.KERNEL_FALLBACKS, (*whose, op), traces)


def _tier_readings(labels: tuple[str, ...], tier: pb.TierStatus) -> Iterator[Reading]:
    if not tier.num_blocks:
        return
    yield Reading(metrics.CACHE_USAGE, labels, tier.leased_blocks / tier.num_blocks)
    yield Reading(metrics.BLOCKS, labels, tier.num_blocks)
    yield Reading(metrics.BLOCKS_FREE, labels, tier.free_blocks)
    yield Reading(metrics.BLOCKS_LEASED, labels, tier.leased_blocks)
    yield Reading(metrics.BLOCKS_INDEXED, labels, tier.indexed_blocks)
    yield Reading(metrics.BLOCKS_PINNED, labels, tier.pinned_blocks)
