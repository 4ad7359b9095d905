"""What processes say of the requests they served: metrics, traces, logs, all from one cluster."""

import json
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from memserve_jax.client import Answer, ClientError
from tests.helpers.goldens import load_golden
from tests.helpers.processes import PATIENCE_S, ProcessCluster, process_cluster
from tests.helpers.scrape import Scrape, discovered, scrape
from tests.helpers.spans import Span, read_spans, trees

GOLDEN = load_golden("llama3")
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
NUM_TOKENS = 8
PROMPTS = [GOLDEN.prompts[2], GOLDEN.prompts[4], GOLDEN.prompts[4]]


@dataclass
class Served:
    """A cluster that has answered `PROMPTS` and refused one request."""

    cluster: ProcessCluster
    answers: list[Answer]
    folder: pathlib.Path

    @property
    def scheduler(self) -> Scrape:
        return scrape(self.cluster.client.status().metrics_target)

    def instance(self, name: str) -> Scrape:
        return scrape(self.cluster.statuses()[name].metrics_target)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("telemetry")
    telemetry = {
        "tracing.exporter": "file",
        "tracing.folder": str(folder / "traces"),
        "log.format": "json",
        "log.requests": "true",
    }
    with process_cluster(GOLDEN.path, "1p1d", folder=folder, overrides=telemetry) as cluster:
        answers = [
            cluster.client.generate(
                token_ids=prompt,
                request_id=f"r{index}",
                max_tokens=NUM_TOKENS,
                temperature=0.0,
                ignore_eos=True,
                timeout_s=PATIENCE_S,
                traceparent=f"00-{TRACE}-{CALLER}-01" if index == 0 else None,
            )
            for index, prompt in enumerate(PROMPTS)
        ]
        with pytest.raises(ClientError, match="INVALID_ARGUMENT"):
            cluster.client.generate(token_ids=[1], temperature=-1.0, timeout_s=PATIENCE_S)
        cluster.settle()
        yield Served(cluster, answers, folder)


def test_the_scheduler_counts_what_its_clients_saw(served: Served):
    found = served.scheduler
    usages = [answer.usage for answer in served.answers]
    assert found.sum("memserve_scheduler_time_to_first_token_seconds_count") == len(PROMPTS)
    assert found.sum("memserve_scheduler_e2e_request_latency_seconds_count") == len(PROMPTS)
    assert found.sum("memserve_scheduler_inter_token_latency_seconds_count") == sum(
        usage.completion_tokens - 1 for usage in usages
    )
    assert found.by("memserve_scheduler_requests_total", "code") == {
        "OK": len(PROMPTS),
        "INVALID_ARGUMENT": 1,
    }
    assert found.by("memserve_scheduler_request_success_total", "finished_reason") == {
        "length": len(PROMPTS)
    }
    assert found.by("memserve_scheduler_route_decisions_total", "instance_name") == {
        "p0": len(PROMPTS),
        "d0": len(PROMPTS),
    }
    assert found.sum("memserve_scheduler_prompt_tokens_total") == sum(map(len, PROMPTS))
    cached = sum(usage.cached_tokens for usage in usages)
    assert found.sum("memserve_scheduler_cached_tokens_total") == cached > 0
    assert found.sum("memserve_scheduler_instances", state="serving") == 2
    waited = found.sum("memserve_scheduler_time_to_first_token_seconds_sum")
    assert waited == pytest.approx(sum(answer.timing.ttft_s for answer in served.answers))


def test_the_instances_count_what_they_did(served: Served):
    p0, d0 = served.instance("p0"), served.instance("d0")
    usages = [answer.usage for answer in served.answers]
    assert p0.sum("memserve_prefix_cache_queries_total") == sum(map(len, PROMPTS))
    assert p0.sum("memserve_prefix_cache_hits_total") == sum(
        usage.cached_tokens for usage in usages
    )
    assert p0.sum("memserve_request_queue_time_seconds_count") == len(PROMPTS)
    assert d0.sum("memserve_time_to_first_token_seconds_count") == len(PROMPTS)
    assert p0.sum("memserve_time_to_first_token_seconds_count") == 0  # it streams no answer
    assert d0.sum("memserve_inter_token_latency_seconds_count") == sum(
        usage.completion_tokens - 1 for usage in usages
    )
    assert d0.sum("memserve_request_generation_tokens_sum") == len(PROMPTS) * NUM_TOKENS
    assert d0.sum("memserve_request_success_total", finished_reason="length") == len(PROMPTS)
    moved = sum(answer.timing.kv_bytes_moved for answer in served.answers)
    counters = served.cluster.counters()
    sent = p0.sum("memserve_kv_bytes_sent_total")
    assert sent == counters["p0"].kv_bytes_sent == moved > 0
    assert p0.sum("memserve_transport_bytes_total", transport="tcp") == sent
    assert d0.sum("memserve_kv_bytes_received_total") == moved
    hbm = {"tier": "hbm"}
    for name, found in (("p0", p0), ("d0", d0)):
        assert found.sum("memserve_kv_blocks", instance_name=name, **hbm) == 256
        assert found.sum("memserve_kv_blocks_leased", **hbm) == 0
        assert found.sum("memserve_kv_blocks_indexed", **hbm) > 0
        assert found.sum("memserve_num_requests_running") == 0
        assert found.sum("process_cpu_seconds_total") > 0


def test_prometheus_can_discover_them_all(served: Served):
    status = served.cluster.client.status()
    targets = {status.metrics_target, *(each.metrics_target for each in status.instances)}
    assert len(targets) == 3
    assert set(discovered(status.metrics_target)) == targets


def requests_of(served: Served) -> dict[str, Span]:
    """Returns the root span of each request by its id."""
    roots = trees(read_spans(served.folder / "traces"))
    return {root.attributes["memserve.request_id"]: root for root in roots}


def test_a_request_is_one_trace_through_all_processes(served: Served):
    roots = requests_of(served)
    for index, answer in enumerate(served.answers):
        root = roots[f"r{index}"]
        assert root.shape() == (
            "request",
            ("route",),
            (
                "attempt",
                (
                    "answer",
                    (
                        "call_prefill",
                        ("prefill", ("queue",), ("compute",), ("transfer",)),
                    ),
                    ("decode",),
                ),
            ),
        )
        root.check_nested()
        (prefill,), (reply,) = root.find("prefill"), root.find("answer")
        processes = [span.process for span in (root, reply, prefill)]
        assert processes == ["memserve-scheduler", "memserve-d0", "memserve-p0"]
        assert [span.kind for span in (root, reply, prefill)] == ["SERVER"] * 3
        everything = [span for name in NAMES for span in root.find(name)]
        assert {span.attributes["memserve.request_id"] for span in everything} == {f"r{index}"}
        assert {span.status for span in everything} == {"UNSET"}
        assert root.attributes["gen_ai.usage.output_tokens"] == NUM_TOKENS
        (transfer,) = root.find("transfer")
        moved = transfer.attributes["memserve.kv_blocks_moved"]
        assert moved == answer.timing.kv_blocks_moved
        (route,) = root.find("route")
        assert route.attributes["memserve.policy"] == "min_ttft"


NAMES = (
    *("request", "route", "attempt", "answer", "call_prefill"),
    *("prefill", "queue", "compute", "transfer", "decode"),
)


def test_the_callers_trace_goes_on(served: Served):
    roots = requests_of(served)
    assert (roots["r0"].trace_id, roots["r0"].parent_id) == (TRACE, CALLER)
    assert roots["r1"].parent_id is None
    assert len({roots[f"r{index}"].trace_id for index in range(3)}) == 3


def test_a_refused_request_is_a_span_that_says_so(served: Served):
    refused = requests_of(served)[""]
    assert (refused.name, refused.status) == ("request", "ERROR")
    assert refused.children == []


def test_logs_are_json_that_names_the_request(served: Served):
    for name in ("scheduler", "p0", "d0"):
        lines = [line for line in served.cluster[name].log.splitlines() if line.strip()]
        parsed = [json.loads(line) for line in lines if line.startswith("{")]
        assert parsed and all(entry["process"] == name for entry in parsed)
        assert {"timestamp", "level", "logger", "message"} <= set(parsed[0])
    told = [
        entry
        for entry in map(json.loads, served.cluster["scheduler"].log.splitlines())
        if entry["logger"] == "scheduler.requests"
    ]
    assert [entry["request_id"] for entry in told] == ["r0", "r1", "r2"]
    assert told[0]["trace_id"] == TRACE
    assert told[0]["gen_ai.usage.output_tokens"] == NUM_TOKENS
