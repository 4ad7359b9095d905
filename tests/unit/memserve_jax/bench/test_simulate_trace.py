"""Traces: read as published, refused by line, and replayed under two policies."""

import json

import pytest

from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.bench.simulate_trace import read_trace, simulate_trace
from memserve_jax.core.errors import ConfigError


def line(timestamp_ms: int, num_tokens: int, output_tokens: int, *ids: int) -> str:
    told = {
        "timestamp": timestamp_ms,
        "input_length": num_tokens,
        "output_length": output_tokens,
        "hash_ids": ids,
    }
    return json.dumps(told)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = [line(100 * turn, 1200, 5, turn % 3, 50 + turn % 3, 100 + turn) for turn in range(12)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_a_line_is_a_request(trace):
    found = list(read_trace(trace, 5))
    assert len(found) == 5
    request, output_tokens = found[4]
    assert (request.arrival_s, output_tokens) == (0.4, 5)
    ids = request.prompt_token_ids
    assert len(ids) == 1200 and ids[:512] == (1,) * 512 and ids[1024:] == (104,) * 176


@pytest.mark.parametrize(
    "text",
    ["{", '{"timestamp": 1}', line(0, 600, 5, 1), line(0, 10, 0, 1), line(0, 0, 5)],
)
def test_a_bad_line_is_named(tmp_path, text):
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{line(0, 10, 1, 1)}\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"trace\.jsonl, line 2: "):
        list(read_trace(str(path), 10))


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(ConfigError, match="--trace: got nothing"):
        list(read_trace(None, 10))
    with pytest.raises(ConfigError, match="none: cannot read: "):
        list(read_trace(str(tmp_path / "none"), 10))


def test_reuse_is_worth_something(trace):
    told = []
    report = simulate_trace(SimulateOptions(parts=("trace",), trace=trace), told.append)
    assert told == ["min_ttft", "round_robin"]
    by_policy = {found["policy"]: found for found in report.values}
    assert by_policy["min_ttft"]["requests"] == 12
    assert by_policy["min_ttft"]["cached_percent"] > by_policy["round_robin"]["cached_percent"]
    assert by_policy["min_ttft"]["ttft_mean_ms"] < by_policy["round_robin"]["ttft_mean_ms"]
    assert len(report.rows) == 2 and len(report.rows[0]) == len(report.headings)
