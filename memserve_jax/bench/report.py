"""How a run is shown: a table for people, a JSON object for programs."""

import dataclasses
import json
import math
from collections.abc import Mapping

from rich import box
from rich.table import Table

from memserve_jax.bench.load import LoadResult
from memserve_jax.bench.metrics import RequestRecord, Spread, Summary

LATENCIES = (
    ("TTFT", "ttft_s"),
    ("TPOT", "tpot_s"),
    ("ITL", "itl_s"),
    ("JCT", "jct_s"),
    ("queue", "queue_s"),
)


def milliseconds(seconds: float) -> str:
    """Returns seconds as milliseconds with four significant digits at most."""
    value = seconds * 1e3
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def readable_bytes(count: float | int) -> str:
    """Returns a number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def latency_table(summary: Summary) -> Table:
    """Returns the latencies of a run, one line each."""
    table = Table(title="Latency (ms)", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for column in ("avg", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="right")
    for name, field in LATENCIES:
        values: Spread | None = getattr(summary, field)
        cells = (
            [milliseconds(getattr(values, column.name)) for column in dataclasses.fields(Spread)]
            if values
            else ["-"] * len(dataclasses.fields(Spread))
        )
        table.add_row(name, *cells)
    return table


def volume_table(summary: Summary) -> Table:
    """Returns what a run asked, got and moved."""
    table = Table(title="Volume", box=box.SIMPLE_HEAD, title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    errors = ", ".join(f"{status} {count}" for status, count in sorted(summary.errors.items()))
    rows = [
        (
            "requests",
            f"{summary.num_ok} ok of {summary.num_requests} in {summary.duration_s:.2f} s",
        ),
        ("errors", errors or "none"),
        ("requests/s", f"{summary.requests_per_s:.2f}"),
        ("output tokens/s", f"{summary.output_tokens_per_s:,.1f} ({summary.output_tokens:,})"),
        ("prompt tokens/s", f"{summary.prompt_tokens_per_s:,.1f} ({summary.prompt_tokens:,})"),
        ("hit rate", f"{summary.hit_rate:.1%} ({summary.cached_tokens:,} prompt tokens cached)"),
        (
            "KV moved",
            f"{summary.kv_blocks_moved:,} blocks, {readable_bytes(summary.kv_bytes_moved)}",
        ),
        ("tokens/message", f"{summary.tokens_per_message:.2f}"),
    ]
    if summary.goodput_per_s is not None:
        rows.append(("goodput", f"{summary.goodput_per_s:.2f} requests/s within the limits"))
    for name, value in rows:
        table.add_row(name, value)
    return table


def to_json(
    summary: Summary, result: LoadResult, *, target: str, options: Mapping[str, object]
) -> str:
    """Returns the whole run as one JSON object: options, summary, warnings and every request."""
    return json.dumps(
        {
            "target": target,
            "options": {name: _finite(value) for name, value in options.items()},
            "summary": dataclasses.asdict(summary),
            "abandoned_turns": result.num_abandoned,
            "client": {
                "cpu": result.client_cpu,
                "loop_lag_s": dataclasses.asdict(result.loop_lag_s) if result.loop_lag_s else None,
                "warnings": result.warnings(),
            },
            "requests": [request_row(record) for record in result.records],
        },
        indent=1,
        allow_nan=False,
    )


def _finite(value: object) -> object:
    """Returns an infinite rate as text: JSON has no word for it."""
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return value if is_finite else str(value)


def request_row(record: RequestRecord) -> dict[str, object]:
    """Returns one request as JSON values, without its text and tokens."""
    return {
        "request_id": record.request_id,
        "session_id": record.session_id,
        "turn": record.turn,
        "status": record.status,
        "error": record.error,
        "sent_s": record.sent_s,
        "ttft_s": record.ttft_s,
        "tpot_s": record.tpot_s,
        "jct_s": record.jct_s,
        "queue_s": record.queue_s,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": len(record.token_ids),
        "kv_blocks_moved": record.kv_blocks_moved,
        "kv_bytes_moved": record.kv_bytes_moved,
        "prefill_instance": record.prefill_instance,
        "decode_instance": record.decode_instance,
    }
