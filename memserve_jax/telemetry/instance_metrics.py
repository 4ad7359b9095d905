"""Every metric of an instance that is not a plain total of `Counters` (`counter_metrics.py`).

To add one: an entry here, and a line where it happens: `tally.add(instance_metrics.NAME, ...)` in
the instance's asyncio loop (never on the engine thread), or a line in `instance_readings.py` for
what a status message says.
"""

from memserve_jax.telemetry.counter_metrics import COUNTERS
from memserve_jax.telemetry.metric import (
    LATENCY_BUCKETS_S,
    LENGTH_BUCKETS_TOKENS,
    TOKEN_BUCKETS_S,
    WHOSE,
    Kind,
    Metric,
    by_name,
)

TIME_TO_FIRST_TOKEN = Metric(
    name="memserve_time_to_first_token_seconds",
    kind=Kind.HISTOGRAM,
    labels=WHOSE,
    meaning="From arrival at the instance that streams the answer to its first token.",
    when_bad="memserve_request_queue_time_seconds high too: add prefill instances; else caching.",
    vllm="vllm:time_to_first_token_seconds",
    buckets=LATENCY_BUCKETS_S,
)
INTER_TOKEN_LATENCY = Metric(
    name="memserve_inter_token_latency_seconds",
    kind=Kind.HISTOGRAM,
    labels=WHOSE,
    meaning="Between two tokens of an answer, where it is decoded.",
    when_bad="Fewer rows (engine.max_running), smaller chunks (engine.chunk_tokens), more decode.",
    vllm="vllm:inter_token_latency_seconds",
    buckets=TOKEN_BUCKETS_S,
)
REQUEST_LATENCY = Metric(
    name="memserve_e2e_request_latency_seconds",
    kind=Kind.HISTOGRAM,
    labels=WHOSE,
    meaning="From arrival at the instance that streams to the last token, of whole answers.",
    when_bad="First token plus tokens times the time between them: see those.",
    vllm="vllm:e2e_request_latency_seconds",
    buckets=LATENCY_BUCKETS_S,
)
QUEUE_TIME = Metric(
    name="memserve_request_queue_time_seconds",
    kind=Kind.HISTOGRAM,
    labels=WHOSE,
    meaning="From arrival at the instance that prefills to the first step that computes.",
    when_bad="Prefill is the bottleneck: more prefill instances, or better routing.",
    vllm="vllm:request_queue_time_seconds",
    buckets=LATENCY_BUCKETS_S,
)
PREFILL_TIME = Metric(
    name="memserve_request_prefill_time_seconds",
    kind=Kind.HISTOGRAM,
    labels=WHOSE,
    meaning="From the first step that computes to the first token, where the prompt is computed.",
    when_bad="Long prompts without hits: see memserve_prefix_cache_hits_total.",
    vllm="vllm:request_prefill_time_seconds",
    buckets=LATENCY_BUCKETS_S,
)
HANDOFF_TIME = Metric(
    name="memserve_kv_handoff_time_seconds",
    kind=Kind.HISTOGRAM,
    labels=WHOSE,
    meaning="From a first token at a prefill instance until its KV is on the decode instance.",
    when_bad="The decode side is full (memserve_kv_blocks_free), or the network is slow.",
    buckets=LATENCY_BUCKETS_S,
)
PROMPT_LENGTH = Metric(
    name="memserve_request_prompt_tokens",
    kind=Kind.HISTOGRAM,
    labels=WHOSE,
    meaning="Tokens of a prompt, of whole answers, where they are streamed.",
    when_bad="What clients send; sizes engine.max_context_tokens and the pool.",
    vllm="vllm:request_prompt_tokens",
    buckets=LENGTH_BUCKETS_TOKENS,
)
ANSWER_LENGTH = Metric(
    name="memserve_request_generation_tokens",
    kind=Kind.HISTOGRAM,
    labels=WHOSE,
    meaning="Tokens of a whole answer.",
    when_bad="What clients ask for.",
    vllm="vllm:request_generation_tokens",
    buckets=LENGTH_BUCKETS_TOKENS,
)
FINISHED = Metric(
    name="memserve_request_success_total",
    kind=Kind.COUNTER,
    labels=(*WHOSE, "finished_reason"),
    meaning="Whole answers streamed from here: stop, length, cancelled.",
    when_bad="Falls behind memserve_requests_total: see the errors.",
    vllm="vllm:request_success",
)
ERRORS = Metric(
    name="memserve_request_errors_total",
    kind=Kind.COUNTER,
    labels=(*WHOSE, "method", "code"),
    meaning="Generate and Prefill calls that ended otherwise, by gRPC status.",
    when_bad="RESOURCE_EXHAUSTED: engine.max_waiting; UNAVAILABLE: its peer; INTERNAL: the log.",
)
RUNNING = Metric(
    name="memserve_num_requests_running",
    kind=Kind.GAUGE,
    labels=WHOSE,
    meaning="Requests that have a row of the batch.",
    when_bad="At engine.max_running while others wait: raise it, or add instances.",
    vllm="vllm:num_requests_running",
)
WAITING = Metric(
    name="memserve_num_requests_waiting",
    kind=Kind.GAUGE,
    labels=WHOSE,
    meaning="Requests without a row: queued, awaiting KV, handing it off.",
    when_bad="Grows steadily: overload; add instances of that role.",
    vllm="vllm:num_requests_waiting",
)
QUEUED_TOKENS = Metric(
    name="memserve_queued_prefill_tokens",
    kind=Kind.GAUGE,
    labels=WHOSE,
    meaning="Prompt tokens not computed yet.",
    when_bad="Divided by the rate below it is the time that a new prompt waits.",
)
PREFILL_RATE = Metric(
    name="memserve_prefill_tokens_per_second",
    kind=Kind.GAUGE,
    labels=WHOSE,
    meaning="Prompt tokens computed a second while prompts are computed; a moving average.",
    when_bad="Falls without longer prompts: the machine is shared or throttled.",
)
SERVING = Metric(
    name="memserve_instance_serving",
    kind=Kind.GAUGE,
    labels=WHOSE,
    meaning="1 while it takes requests, 0 while it drains or its engine is broken.",
    when_bad="0 without a drain: the log says why its engine is down.",
)
INFO = Metric(
    name="memserve_instance_info",
    kind=Kind.GAUGE,
    labels=(*WHOSE, "model_name", "caching", "tensor_parallelism", "block_size_tokens"),
    meaning="Always 1: what never changes in one life of an instance.",
    when_bad="Instances of one cluster that differ.",
    vllm="vllm:cache_config_info",
)
CACHE_USAGE = Metric(
    name="memserve_kv_cache_usage_ratio",
    kind=Kind.GAUGE,
    labels=(*WHOSE, "tier"),
    meaning="Of a tier's blocks, the share under a lease: they cannot be evicted. 0 to 1.",
    when_bad="Near 1 in hbm: requests wait for memory; fewer rows, or more HBM.",
    vllm="vllm:kv_cache_usage_perc",
)
BLOCKS = Metric(
    name="memserve_kv_blocks",
    kind=Kind.GAUGE,
    labels=(*WHOSE, "tier"),
    meaning="Blocks that a tier has.",
    when_bad="Less than planned: mempool.hbm_fraction, host_gb, disk_gb.",
)
BLOCKS_FREE = Metric(
    name="memserve_kv_blocks_free",
    kind=Kind.GAUGE,
    labels=(*WHOSE, "tier"),
    meaning="Blocks that hold nothing.",
    when_bad="0 is normal for a warm cache: then history is evicted for what is new.",
)
BLOCKS_LEASED = Metric(
    name="memserve_kv_blocks_leased",
    kind=Kind.GAUGE,
    labels=(*WHOSE, "tier"),
    meaning="Blocks that requests and transfers hold in place.",
    when_bad="Stays up while nothing runs: a leak; `memserve status`, then a bug report.",
)
BLOCKS_INDEXED = Metric(
    name="memserve_kv_blocks_indexed",
    kind=Kind.GAUGE,
    labels=(*WHOSE, "tier"),
    meaning="Blocks of historical KV that later prompts can hit.",
    when_bad="Small beside the working set: a larger tier, or a HOST or DISK tier.",
)
BLOCKS_PINNED = Metric(
    name="memserve_kv_blocks_pinned",
    kind=Kind.GAUGE,
    labels=(*WHOSE, "tier"),
    meaning="Blocks that a Pin call keeps from eviction.",
    when_bad="At mempool.pin_fraction: further pins are refused; unpin some.",
)
TRANSPORT_BYTES = Metric(
    name="memserve_transport_bytes_total",
    kind=Kind.COUNTER,
    labels=(*WHOSE, "transport"),
    meaning="KV bytes sent, by transport.",
    when_bad="0 on a prefill instance under load: no KV moves; see the failed transfers.",
    vllm="vllm:nixl_bytes_transferred",
)
TRANSPORT_CALLS = Metric(
    name="memserve_transport_calls_total",
    kind=Kind.COUNTER,
    labels=(*WHOSE, "transport"),
    meaning="Calls of a transport.",
    when_bad="Many small ones: mempool.transfer_mode by_request_aggregated.",
    vllm="vllm:nixl_num_descriptors",
)
TRANSPORT_SECONDS = Metric(
    name="memserve_transport_seconds_total",
    kind=Kind.COUNTER,
    labels=(*WHOSE, "transport"),
    meaning="Seconds of those calls, summed; calls overlap.",
    when_bad="Bytes over seconds far below the network: `memserve bench transfer`.",
    vllm="vllm:nixl_xfer_time_seconds",
)
KERNEL_FALLBACKS = Metric(
    name="memserve_kernel_fallback_traces",
    kind=Kind.GAUGE,
    labels=(*WHOSE, "op"),
    meaning="Places in compiled programs where an op runs as XLA though the platform has kernels.",
    when_bad="Above 0: `memserve status` says why no kernel fits the model's shapes.",
)

# Read from status messages; all others are gauges, or counted in a tally.
FROM_STATUS = (TRANSPORT_BYTES, TRANSPORT_CALLS, TRANSPORT_SECONDS, *COUNTERS.values())

INSTANCE_METRICS = by_name(
    [*(each for each in list(globals().values()) if isinstance(each, Metric)), *COUNTERS.values()]
)
