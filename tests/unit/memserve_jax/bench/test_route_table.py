"""The tables of `bench route`, and the lines beside them."""

from memserve_jax.bench.route import HashTime, RouteReport
from memserve_jax.bench.route_decide import DecisionTime, TreeTime
from memserve_jax.bench.route_proxy import DirectPath, ProxyReport, WayTime
from memserve_jax.bench.route_table import QUOTED, lines, tables

DECISION = DecisionTime(
    num_instances=256, num_blocks=100_000, prompt_tokens=4096, policy="min_ttft", hash_us=300.0,
    decide_us=150.0, least_decide_us=140.0, p90_decide_us=200.0,
)  # fmt: skip
TREE = TreeTime(
    num_blocks=10**6, prompt_blocks=512, lookup_us=8.0, least_lookup_us=7.0,
    insert_us_per_block=0.6, least_insert_us_per_block=0.5,
)  # fmt: skip


def way(name: str, added_ms: float, message_us: float) -> WayTime:
    return WayTime(
        way=name, tokens_per_message=1, ttft_p50_ms=1.0 + added_ms, ttft_p99_ms=9.0,
        added_ttft_p50_ms=added_ms, requests_per_s=100.0, tokens_per_s=6400.0,
        messages_per_request=64.0, cpu_ms_per_request=2.0 * message_us, cpu_ms_per_1k_tokens=1.0,
        cpu_us_per_message=message_us, spread_cpu_us_per_message=3.0,
    )  # fmt: skip


PROXY = ProxyReport(
    ways=(way("direct", 0.0, 50.0), way("relay", 1.0, 100.0), way("scheduler", 1.2, 110.0)),
    direct_path=DirectPath(
        requests=10, tokens=640, route_cpu_ms_per_request=0.7, streaming_cpu_us_per_token=0.25,
        idle_cpu_us_per_token=0.25,
    ),
)  # fmt: skip


def test_parts_that_were_not_measured_have_no_table():
    assert list(tables(RouteReport())) == []
    assert list(lines(RouteReport())) == list(QUOTED)


def test_all_parts():
    report = RouteReport(
        decisions=(DECISION,),
        trees=(TREE,),
        hashing=HashTime(num_tokens=8192, median_us=500.0, least_us=400.0),
        proxy=PROXY,
    )
    assert [table.row_count for table in tables(report)] == [1, 1, 3]
    said = list(lines(report))
    assert said[0] == "naming the blocks of 8192 tokens: 500 us (least 400)"
    assert said[1] == "scheduler over bare relay, one token a message, added_ttft_p50: 1.20"
    assert "0.25 us a token, idle as long 0.25" in said[4]
    plain = report.to_mapping()
    assert plain["proxy"]["of_bare_relay"]["cpu_per_message"] == 1.1
    assert plain["decisions"][0]["num_instances"] == 256
