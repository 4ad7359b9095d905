"""`memserve bench serve` against a real cluster: what it counts is what the instances count."""

import json

import pytest
from click.testing import CliRunner

from memserve_jax.cli.bench import command
from tests.helpers.cluster import running, tiny_config
from tests.helpers.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tiny_checkpoint(tmp_path_factory.mktemp("model"))
    engine = {"max_context_tokens": 256, "max_running": 2, "chunk_tokens": 16}
    with running(tiny_config(path, "1p1d", caching="pd_caching_3", engine=engine)) as cluster:
        yield cluster


def bench(served, *arguments):
    """Runs the command; returns its JSON and the blocks that prefill sent to decode meanwhile."""
    before = served.counters()["p0"].kv_blocks_sent
    target = served.client.target
    result = CliRunner().invoke(command, ["serve", "--target", target, "--json", "-", *arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout), served.counters()["p0"].kv_blocks_sent - before


def test_a_closed_loop_of_sessions(served):
    run, sent = bench(
        served, "--num-requests", "6", "--turns", "2", "--concurrency", "1",
        "--prompt-tokens", "48", "--turn-tokens", "7", "--output-tokens", "9",
        "--shared-prefix-tokens", "32", "--cache-salt", "closed", "--warm-up", "0",
    )  # fmt: skip
    summary = run["summary"]
    assert summary["num_ok"] == 6 and summary["output_tokens"] == 6 * 9
    # Turn 1: 48 tokens, all but the first session's find the 32 shared ones. Turn 2: 48+9+7 tokens,
    # of which P holds 48 (all but the last of 57 have KV: 3 whole blocks).
    assert summary["prompt_tokens"] == 3 * (48 + 64)
    assert summary["cached_tokens"] == 2 * 32 + 3 * 48
    # D lacks three blocks of the first prompt, one of the next two, one of every second turn.
    assert summary["kv_blocks_moved"] == sent == 3 + 1 + 1 + 3 * 1
    assert summary["ttft_s"]["avg"] > 0 and summary["tpot_s"]["p99"] > 0
    assert {row["prefill_instance"] for row in run["requests"]} == {"p0"}
    assert {row["decode_instance"] for row in run["requests"]} == {"d0"}


def test_an_open_loop_overlaps_requests(served):
    run, _ = bench(
        served, "--num-requests", "8", "--rate", "inf", "--prompt-tokens", "uniform:20:60",
        "--output-tokens", "uniform:2:6", "--cache-salt", "open", "--seed", "5",
    )  # fmt: skip
    rows = run["requests"]
    assert run["summary"]["num_ok"] == 8
    assert max(row["sent_s"] for row in rows) < min(row["sent_s"] + row["jct_s"] for row in rows)


def test_a_dataset_of_every_kind_of_prompt(served, tmp_path):
    path = tmp_path / "set.jsonl"
    lines = [
        {"prompt": "once upon a time", "output_tokens": 3},
        {"token_ids": [10, 20, 30], "output_tokens": 4},
        {"messages": [{"role": "user", "content": "hello"}], "session_id": "talk"},
        {"messages": [{"role": "user", "content": "and now"}], "session_id": "talk"},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    run, _ = bench(served, "--dataset", str(path), "--output-tokens", "5", "--concurrency", "1")
    assert [row["completion_tokens"] for row in run["requests"]] == [3, 4, 5, 5]


def test_refused_requests_are_counted_by_status(served):
    run, _ = bench(
        served, "--num-requests", "4", "--prompt-tokens", "uniform:200:400",
        "--output-tokens", "2", "--seed", "3", "--warm-up", "0",
    )  # fmt: skip
    summary = run["summary"]
    too_long = [row for row in run["requests"] if row["status"] == "INVALID_ARGUMENT"]
    assert summary["errors"] == {"INVALID_ARGUMENT": len(too_long)} and too_long
    assert summary["num_ok"] == 4 - len(too_long) > 0
    assert all("256" in row["error"] for row in too_long)
