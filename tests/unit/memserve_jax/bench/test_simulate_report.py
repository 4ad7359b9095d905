"""Reports of simulations: a bound that is broken says so."""

import dataclasses

from memserve_jax.bench.simulate_report import Bound, PartReport, latencies
from memserve_jax.bench.simulated_cluster import SimulatedRecord
from memserve_jax.core.types import InstanceId, Request, RequestId, SamplingParams


def test_bounds():
    kept = Bound(what="queue", found=1.5, most=2.0)
    broken = dataclasses.replace(kept, found=2.5)
    assert (kept.holds, str(kept)) == (True, "queue: 1.5, at most 2: holds")
    assert (broken.holds, str(broken)) == (False, "queue: 2.5, at most 2: BROKEN")


def test_a_report_is_a_table_and_plain_values():
    bound = Bound(what="queue", found=1.5, most=2.0)
    report = PartReport(
        part="hot", title="T", headings=("a", "b"), rows=(("1", "2"),), values=({"a": 1},),
        bounds=(bound,),
    )  # fmt: skip
    assert report.table().row_count == 1
    assert report.to_mapping() == {
        "part": "hot",
        "title": "T",
        "rows": ({"a": 1},),
        "bounds": [{"what": "queue", "found": 1.5, "most": 2.0, "holds": True}],
    }


def test_latencies():
    request = Request(
        request_id=RequestId("r"), session_id="", prompt_token_ids=tuple(range(10)),
        sampling=SamplingParams(), arrival_s=1.0,
    )  # fmt: skip
    record = SimulatedRecord(
        request=request, output_tokens=3, prefill=InstanceId("a"), decode=InstanceId("a"),
        sequences_there=0, cached_tokens=4, first_token_s=1.5, done_s=2.5,
    )  # fmt: skip
    found = latencies([record, dataclasses.replace(record, output_tokens=1, done_s=1.5)])
    assert (found.ttft_mean_ms, found.tpot_mean_ms, found.cached_percent) == (500.0, 500.0, 40.0)
