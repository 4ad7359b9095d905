"""Statistics of a run, from what the client saw. Pure: records in, numbers out.

TTFT: sent to first token, s. TPOT: seconds a token after the first. ITL: seconds between two
streamed messages with tokens. JCT: sent to last token, s. All by the client's own clock, so they
include the network and both queues.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PERCENTILES = (50.0, 90.0, 99.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request, as the client saw it. Times are seconds from the start of the run."""

    request_id: str
    session_id: str
    turn: int  # 0 is the session's first
    status: str  # "OK", the name of a gRPC status, or "BROKEN_STREAM"
    error: str = ""
    sent_s: float
    token_times_s: tuple[float, ...] = ()  # of each message that carried tokens
    ended_s: float
    token_ids: tuple[int, ...] = ()
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    kv_blocks_moved: int = 0
    kv_bytes_moved: int = 0
    queue_s: float = 0.0  # by the server's clock
    prefill_instance: str = ""
    decode_instance: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether the answer came whole."""
        return self.status == "OK"

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token; None where none came."""
        return self.token_times_s[0] - self.sent_s if self.token_times_s else None

    @property
    def jct_s(self) -> float:
        """Time to the end of the stream."""
        return self.ended_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds a token after the first; None for answers of fewer than two tokens."""
        if len(self.token_ids) < 2:
            return None
        return (self.token_times_s[-1] - self.token_times_s[0]) / (len(self.token_ids) - 1)

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Seconds between messages that carried tokens."""
        times = self.token_times_s
        return tuple(later - earlier for earlier, later in itertools.pairwise(times))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A sample's average and percentiles."""

    avg: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole run. Latencies are over the requests that succeeded; None: no sample."""

    num_requests: int
    num_ok: int
    errors: dict[str, int]  # status -> requests
    duration_s: float
    ttft_s: Spread | None
    tpot_s: Spread | None
    itl_s: Spread | None
    jct_s: Spread | None
    queue_s: Spread | None
    output_tokens: int
    output_tokens_per_s: float
    prompt_tokens: int
    prompt_tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float | None  # requests/s within the limits asked for; None where none were
    cached_tokens: int
    hit_rate: float  # cached / prompt tokens
    kv_blocks_moved: int
    kv_bytes_moved: int
    tokens_per_message: float  # 1 where the server streams every token by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The latency a request must keep to count as goodput; None does not limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def holds(self, record: RequestRecord) -> bool:
        """Whether `record` succeeded within the limits."""
        return (
            record.is_ok
            and _within(record.ttft_s, self.ttft_s)
            and _within(record.tpot_s, self.tpot_s)
        )


def percentile(ordered: Sequence[float], percent: float | int) -> float:
    """Returns a percentile of a sorted, non-empty sample, interpolated linearly."""
    place = (len(ordered) - 1) * percent / 100
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Iterable[float]) -> Spread | None:
    """Returns the spread of a sample, None of an empty one."""
    ordered = sorted(values)
    if not ordered:
        return None
    p50, p90, p99 = (percentile(ordered, percent) for percent in PERCENTILES)
    return Spread(avg=math.fsum(ordered) / len(ordered), p50=p50, p90=p90, p99=p99, max=ordered[-1])


def summarize(records: Sequence[RequestRecord], objective: Objective | None = None) -> Summary:
    """Returns the statistics of a run, which lasts from its first request to its last answer."""
    done = [record for record in records if record.is_ok]
    duration_s = _duration_s(records)
    prompt_tokens = sum(record.prompt_tokens for record in done)
    cached_tokens = sum(record.cached_tokens for record in done)
    output_tokens = sum(len(record.token_ids) for record in done)
    num_messages = sum(len(record.token_times_s) for record in done)
    num_good = sum(objective.holds(record) for record in done) if objective else None
    return Summary(
        num_requests=len(records),
        num_ok=len(done),
        errors=dict(Counter(record.status for record in records if not record.is_ok)),
        duration_s=duration_s,
        ttft_s=spread(record.ttft_s for record in done if record.ttft_s is not None),
        tpot_s=spread(record.tpot_s for record in done if record.tpot_s is not None),
        itl_s=spread(gap for record in done for gap in record.gaps_s),
        jct_s=spread(record.jct_s for record in done),
        queue_s=spread(record.queue_s for record in done),
        output_tokens=output_tokens,
        output_tokens_per_s=_ratio(output_tokens, duration_s),
        prompt_tokens=prompt_tokens,
        prompt_tokens_per_s=_ratio(prompt_tokens, duration_s),
        requests_per_s=_ratio(len(done), duration_s),
        goodput_per_s=None if num_good is None else _ratio(num_good, duration_s),
        cached_tokens=cached_tokens,
        hit_rate=_ratio(cached_tokens, prompt_tokens),
        kv_blocks_moved=sum(record.kv_blocks_moved for record in done),
        kv_bytes_moved=sum(record.kv_bytes_moved for record in done),
        tokens_per_message=_ratio(output_tokens, num_messages),
    )


def _duration_s(records: Sequence[RequestRecord]) -> float:
    if not records:
        return 0.0
    return max(record.ended_s for record in records) - min(record.sent_s for record in records)


def _ratio(numerator: float | int, denominator: float | int) -> float:
    return numerator / denominator if denominator else 0.0


def _within(value: float | None, limit: float | None) -> bool:
    return limit is None or value is None or value <= limit
