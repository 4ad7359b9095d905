"""Every metric of the scheduler. To add one: an entry here, and a line where it happens.

A counter or histogram: `state.tally.add(scheduler_metrics.NAME, "label value")` or
`state.tally.observe(...)`, in the scheduler's loop. A gauge: a line in `scheduler/readings.py`.
"""

from memserve_jax.telemetry.metric import (
    LATENCY_BUCKETS_S,
    TOKEN_BUCKETS_S,
    Kind,
    Metric,
    by_name,
)

TIME_TO_FIRST_TOKEN = Metric(
    name="memserve_scheduler_time_to_first_token_seconds",
    kind=Kind.HISTOGRAM,
    meaning="From a request's arrival at the scheduler to its first token on the way out.",
    when_bad="Compare with memserve_request_queue_time_seconds: add prefill instances, or cache.",
    buckets=LATENCY_BUCKETS_S,
)
INTER_TOKEN_LATENCY = Metric(
    name="memserve_scheduler_inter_token_latency_seconds",
    kind=Kind.HISTOGRAM,
    meaning="Between two tokens of an answer; those that pass together share the time.",
    when_bad="Where memserve_inter_token_latency_seconds is well below it: the scheduler's CPU.",
    buckets=TOKEN_BUCKETS_S,
)
REQUEST_LATENCY = Metric(
    name="memserve_scheduler_e2e_request_latency_seconds",
    kind=Kind.HISTOGRAM,
    meaning="From arrival to the last token, of whole answers.",
    when_bad="See the two above: it is first token plus tokens times the time between them.",
    buckets=LATENCY_BUCKETS_S,
)
REQUESTS = Metric(
    name="memserve_scheduler_requests_total",
    kind=Kind.COUNTER,
    labels=("code",),
    meaning="Generate calls that ended, by gRPC status.",
    when_bad="UNAVAILABLE: instances; RESOURCE_EXHAUSTED: overload; INTERNAL: the logs.",
)
FINISHED = Metric(
    name="memserve_scheduler_request_success_total",
    kind=Kind.COUNTER,
    labels=("finished_reason",),
    meaning="Whole answers, by what ended them: stop, length, cancelled.",
    when_bad="Much length: clients ask for too few tokens.",
)
PROMPT_TOKENS = Metric(
    name="memserve_scheduler_prompt_tokens_total",
    kind=Kind.COUNTER,
    meaning="Prompt tokens of whole answers.",
    when_bad="The load; compare with what the instances can prefill.",
)
CACHED_TOKENS = Metric(
    name="memserve_scheduler_cached_tokens_total",
    kind=Kind.COUNTER,
    meaning="Of those, tokens that the prefill side did not compute.",
    when_bad="Below the expected ones: the scheduler's trees are out of date.",
)
EXPECTED_CACHED_TOKENS = Metric(
    name="memserve_scheduler_expected_cached_tokens_total",
    kind=Kind.COUNTER,
    meaning="Of those, tokens that the route expected the prefill instance to hold.",
    when_bad="Above the cached ones: instances evict; see memserve_kv_blocks_free.",
)
GENERATED_TOKENS = Metric(
    name="memserve_scheduler_generation_tokens_total",
    kind=Kind.COUNTER,
    meaning="Tokens of whole answers.",
    when_bad="The throughput that clients see.",
)
ROUTES = Metric(
    name="memserve_scheduler_route_decisions_total",
    kind=Kind.COUNTER,
    labels=("policy", "reason", "role", "instance_name"),
    meaning="Decisions, counted at each instance chosen (one prefill and one decode, or one).",
    when_bad="One instance far ahead of its peers is a hot spot: another policy, or replicas.",
)
ROUTE_TIME = Metric(
    name="memserve_scheduler_route_time_seconds",
    kind=Kind.HISTOGRAM,
    meaning="The time that one decision takes the scheduler's loop.",
    when_bad="Above 1 ms: a slower policy, huge prompts, or no CPU for the scheduler.",
    buckets=(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 0.1),
)
ADMISSION_REJECTIONS = Metric(
    name="memserve_scheduler_admission_rejections_total",
    kind=Kind.COUNTER,
    labels=("reason",),
    meaning="Requests refused with RESOURCE_EXHAUSTED: slo, deadline (they would have come too "
    "late), waiting, tenant (too many wait), in_flight, or instance (by one).",
    when_bad="More instances, or raise the limit that the reason names.",
    vllm="vllm:admission_rejections",
)
DEPARTURES = Metric(
    name="memserve_scheduler_instance_departures_total",
    kind=Kind.COUNTER,
    labels=("reason",),
    meaning="Lives of instances that ended: left, restarted, silent.",
    when_bad="restarted or silent: that instance's log, its machine, its memory.",
)
REPLAYS = Metric(
    name="memserve_scheduler_replays_total",
    kind=Kind.COUNTER,
    labels=("code",),
    meaning="Attempts made again elsewhere, by the gRPC status that the one before ended with.",
    when_bad="See the departures; INTERNAL: an engine failed, see the instances' logs.",
)
KV_UPDATES = Metric(
    name="memserve_scheduler_kv_updates_total",
    kind=Kind.COUNTER,
    labels=("role", "instance_name", "outcome"),
    meaning="What instances tell of their caches: events, snapshot, missed or refused.",
    when_bad="missed: heartbeats get lost or stall; refused: that instance's log and its version.",
)
PLANNER_DECISIONS = Metric(
    name="memserve_scheduler_planner_decisions_total",
    kind=Kind.COUNTER,
    labels=("reason",),
    meaning="What the planner decided, every heartbeat: enough, busy, last, unsettled, hold, pause "
    "or move.",
    when_bad="busy or last, for long: more instances; unsettled, for long: one is down or drains.",
)
PLANNER_MOVES = Metric(
    name="memserve_scheduler_planner_moves_total",
    kind=Kind.COUNTER,
    labels=("to_role", "outcome"),
    meaning="Instances that the planner moved to a role: done or failed.",
    when_bad="Many to both roles: longer planner.hold_s and pause_s; failed: the scheduler's log.",
)
IN_FLIGHT = Metric(
    name="memserve_scheduler_requests_in_flight",
    kind=Kind.GAUGE,
    meaning="Requests between arrival and end.",
    when_bad="Near scheduler.max_in_flight: overload.",
)
INSTANCES = Metric(
    name="memserve_scheduler_instances",
    kind=Kind.GAUGE,
    labels=("role", "state"),
    meaning="Live instances: serving, draining or down.",
    when_bad="Fewer serving than deployed: see the departures.",
)
HEARTBEAT_AGE = Metric(
    name="memserve_scheduler_heartbeat_age_seconds",
    kind=Kind.GAUGE,
    labels=("role", "instance_name"),
    meaning="Since an instance was last heard of.",
    when_bad="Several periods: it hangs or cannot reach the scheduler; it is dead at the time-out.",
)
TREE_BLOCKS = Metric(
    name="memserve_scheduler_prompt_tree_blocks",
    kind=Kind.GAUGE,
    labels=("role",),
    meaning="(Block, instance) pairs in the global prompt tree of a role.",
    when_bad="At scheduler.prompt_tree_blocks: the oldest knowledge is dropped; raise it.",
)

SCHEDULER_METRICS = by_name(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
