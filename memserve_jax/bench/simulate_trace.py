"""Part `trace`: a recorded trace, replayed under the policy asked for and under round robin.

A trace is JSONL as Mooncake publishes it (arXiv 2407.00079): a line a request, with `timestamp`
(ms), `input_length`, `output_length` (tokens) and `hash_ids`, one for each 512 tokens of the
prompt: equal ids, after equal ones, are equal tokens.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.bench.simulate_report import PartReport, latencies
from memserve_jax.bench.simulated_cluster import ClusterShape, SimulatedCluster
from memserve_jax.bench.simulated_instance import InstanceShape
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.types import Request, RequestId, Role, SamplingParams

HASHED_TOKENS = 512
MAX_TTFT_S, MAX_TPOT_S = 2.0, 0.05  # what counts as served well
_NUM_INSTANCES = 4
_HEADINGS = ("policy", "requests", "cached", "TTFT mean ms", "p50", "p99", "TPOT mean ms")
_HEADINGS += ("served well",)


def simulate_trace(options: SimulateOptions, told: Callable[[str], None]) -> PartReport:
    """Returns how the trace went.

    Raises:
      ConfigError: no trace was named, it cannot be read, or a line of it is no request.
    """
    values: list[dict[str, Any]] = []
    for policy in dict.fromkeys((options.policy, "round_robin")):
        told(policy)
        values.append({"policy": policy, **_replay(options, policy)})
    return PartReport(
        part="trace",
        title=f"{options.trace}, {_NUM_INSTANCES} instances",
        headings=_HEADINGS,
        rows=tuple(
            (
                found["policy"],
                str(found["requests"]),
                f"{found['cached_percent']:.1f} %",
                f"{found['ttft_mean_ms']:.0f}",
                f"{found['ttft_p50_ms']:.0f}",
                f"{found['ttft_p99_ms']:.0f}",
                f"{found['tpot_mean_ms']:.1f}",
                str(found["served_well"]),
            )
            for found in values
        ),
        values=tuple(values),
    )


def _replay(options: SimulateOptions, policy: str) -> dict[str, Any]:
    shape = InstanceShape(
        cost=options.cost,
        block_size_tokens=256,
        hbm_tokens=4096 * HASHED_TOKENS,
        max_running=256,
        chunk_tokens=2048,
    )
    cluster = SimulatedCluster(
        ClusterShape(
            roles=(Role.COLOCATED,) * _NUM_INSTANCES,
            instance=shape,
            policy=policy,
            prompt_tree_ttl_s=1e6,
        )
    )
    for request, output_tokens in read_trace(options.trace, options.trace_requests):
        cluster.offer(request, output_tokens)
    cluster.run()
    times = latencies(cluster.records)
    well = sum(
        record.ttft_s <= MAX_TTFT_S and (record.tpot_s or 0.0) <= MAX_TPOT_S
        for record in cluster.records
    )
    return {
        "requests": len(cluster.records),
        "cached_percent": times.cached_percent,
        "ttft_mean_ms": times.ttft_mean_ms,
        "ttft_p50_ms": times.ttft_p50_ms,
        "ttft_p99_ms": times.ttft_p99_ms,
        "tpot_mean_ms": times.tpot_mean_ms,
        "served_well": well,
    }


def read_trace(path: str | None, num_requests: int) -> Iterator[tuple[Request, int]]:
    """Gives at most so many requests of a trace, each with the length of its answer.

    Raises:
      ConfigError: see `simulate_trace`; names the line.
    """
    if path is None:
        raise ConfigError("--trace: got nothing, allowed: a file, for the part `trace`")
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(itertools.islice(lines, num_requests), 1):
                yield _request(number, line, path)
    except OSError as error:
        raise ConfigError(f"--trace {path}: cannot read: {error.strerror}") from None


def _request(number: int, line: str, path: str) -> tuple[Request, int]:
    try:
        told = json.loads(line)
        num_tokens, ids = int(told["input_length"]), [int(each) for each in told["hash_ids"]]
        tokens = [each for each in ids for _ in range(HASHED_TOKENS)][:num_tokens]
        arrival_s, output_tokens = float(told["timestamp"]) / 1e3, int(told["output_length"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--trace {path}, line {number}: no request: {error!r}") from None
    if len(tokens) != num_tokens or num_tokens < 1 or output_tokens < 1:
        raise ConfigError(
            f"--trace {path}, line {number}: got {num_tokens} and {output_tokens} tokens, "
            f"{len(ids)} hash_ids; allowed: at least 1 each, an id for each {HASHED_TOKENS}"
        )
    request = Request(
        request_id=RequestId(f"t{number}"),
        session_id="",
        prompt_token_ids=tuple(tokens),
        sampling=SamplingParams(max_tokens=output_tokens),
        arrival_s=arrival_s,
    )
    return request, output_tokens
