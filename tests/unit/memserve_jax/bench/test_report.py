import json
import math

import pytest
import rich.console

from memserve_jax.bench.load import LoadResult
from memserve_jax.bench.metrics import RequestRecord, spread, summarize
from memserve_jax.bench.report import (
    latency_table,
    milliseconds,
    readable_bytes,
    to_json,
    volume_table,
)

OK = RequestRecord(
    request_id="r0", session_id="s0", turn=0, status="OK", sent_s=0.0, token_times_s=(0.25, 0.5),
    ended_s=0.5, token_ids=(1, 2), text="ab", prompt_tokens=64, cached_tokens=16,
    kv_blocks_moved=4, kv_bytes_moved=4096, prefill_instance="p0", decode_instance="d0",
)  # fmt: skip
FAILED = RequestRecord(
    request_id="r1", session_id="s1", turn=0, status="UNAVAILABLE", error="gone", sent_s=0.0,
    ended_s=1.0,
)  # fmt: skip


def printed(table):
    console = rich.console.Console(width=100, record=True, file=open_nowhere())
    console.print(table)
    return console.export_text()


def open_nowhere():
    class Nowhere:
        def write(self, text):
            pass

        def flush(self):
            pass

    return Nowhere()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123456, "12.35"), (0.1234, "123.4"), (12.3456, "12,346")]
)
def test_milliseconds(seconds, text):
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (4096, "4.1 kB"), (5e12, "5.0 TB")]
)
def test_readable_bytes(count, text):
    assert readable_bytes(count) == text


def test_the_tables_show_what_was_measured():
    summary = summarize([OK, FAILED])
    latency, volume = printed(latency_table(summary)), printed(volume_table(summary))
    assert [line.split()[:3] for line in latency.splitlines() if "TTFT" in line] == [
        ["TTFT", "250.0", "250.0"]
    ]
    assert "1 ok of 2" in volume and "UNAVAILABLE 1" in volume
    assert "25.0%" in volume and "4 blocks, 4.1 kB" in volume and "goodput" not in volume


def test_tables_of_a_run_without_answers_show_dashes():
    assert "TTFT" in printed(latency_table(summarize([FAILED])))


def test_the_json_holds_options_summary_and_requests():
    result = LoadResult(
        records=[OK, FAILED], num_abandoned=2, loop_lag_s=spread([0.001]), client_cpu=0.5
    )
    text = to_json(
        summarize(result.records), result, target="h:1", options={"seed": 3, "rate": math.inf}
    )
    run = json.loads(text)
    assert run["target"] == "h:1" and run["options"] == {"seed": 3, "rate": "inf"}
    assert run["summary"]["ttft_s"]["p50"] == 0.25 and run["summary"]["hit_rate"] == 0.25
    assert run["abandoned_turns"] == 2 and run["client"]["cpu"] == 0.5
    assert [row["status"] for row in run["requests"]] == ["OK", "UNAVAILABLE"]
    assert run["requests"][0]["completion_tokens"] == 2
    assert run["requests"][1]["ttft_s"] is None
