import dataclasses

import pytest
import rich.console

from memserve_jax.bench.demo import SETTINGS
from memserve_jax.bench.demo_report import SettingRun, findings, problems, settings_table
from memserve_jax.bench.metrics import RequestRecord, summarize


def record(index, *, ttft_s=0.4, cached=0, token=5):
    return RequestRecord(
        request_id=f"r{index}", session_id=f"s{index}", turn=0, status="OK", sent_s=0.0,
        token_times_s=(ttft_s, ttft_s + 0.1), ended_s=ttft_s + 0.1, token_ids=(token, 6),
        prompt_tokens=100, cached_tokens=cached,
    )  # fmt: skip


def made_runs(**changes):
    runs = []
    for setting in SETTINGS:
        ttft_s = 0.1 if setting.caches else 0.4
        records = tuple(
            record(i, ttft_s=ttft_s, cached=50 if setting.caches else 0) for i in range(3)
        )
        runs.append(
            SettingRun(
                setting=setting, summary=summarize(records), records=records,
                kv_bytes_to_decode=3000 if setting.is_disaggregated else 0,
                kv_bytes_to_prefill=1000 if setting.caching == "pd_caching_3" else 0,
            )
        )  # fmt: skip
    runs[-1] = dataclasses.replace(runs[-1], **changes)
    return runs


def check(runs):
    return problems(runs, num_requests=3, output_tokens=2)


def test_the_four_settings_are_the_papers():
    assert [setting.name for setting in SETTINGS] == ["PD", "PD+caching", "1P1D", "1P1D+caching"]
    assert [setting.caches for setting in SETTINGS] == [False, True, False, True]
    assert [setting.is_disaggregated for setting in SETTINGS] == [False, False, True, True]


def test_the_table_has_a_line_for_each_setting():
    console = rich.console.Console(width=100)
    with console.capture() as capture:
        console.print(settings_table(made_runs()))
    lines = [line.split() for line in capture.get().splitlines()]
    (cached,) = [line for line in lines if line[:1] == ["1P1D+caching"]]
    assert cached[1:] == [
        "100/100/100", "100/100/100", "200/200/200", "50.0%", "3.0", "kB,", "1.0", "kB",
    ]  # fmt: skip


def test_the_sentences_come_from_the_figures():
    runs = {run.setting.name: run for run in made_runs()}
    colocated, disaggregated, apart, best, caveat = findings(runs, num_cores=2)
    assert "TTFT avg -75% (400.0 -> 100.0 ms)" in colocated
    assert "TTFT avg -75%" in disaggregated
    assert "TTFT avg +0%" in apart and "JCT avg +0%" in apart
    assert best.endswith("PD+caching.")
    assert "same 2 CPU cores" in caveat


def test_nothing_is_wrong_with_a_good_run():
    assert check(made_runs()) == []


def test_other_tokens_in_one_setting_are_found():
    records = (record(0, cached=50), record(1, cached=50, token=9), record(2, cached=50))
    (found,) = check(made_runs(records=records, summary=summarize(records)))
    assert found == (
        "1P1D+caching: s1 turn 0: greedy tokens differ from PD's: [9, 6] instead of [5, 6]"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_bytes_to_decode": 0}, "0 bytes of KV went to decode"),
        ({"summary": summarize([record(0, cached=50)])}, "1 of 3 requests ok"),
        ({"summary": summarize([record(i) for i in range(3)])}, "0 prompt tokens were cached"),
        (
            {"records": (dataclasses.replace(record(0), token_ids=(5,)),)},
            "1 answers are not of 2 tokens",
        ),
    ],
)
def test_what_must_not_be_is_found(changes, message):
    found = check(made_runs(**changes))
    assert any(message in problem for problem in found)
