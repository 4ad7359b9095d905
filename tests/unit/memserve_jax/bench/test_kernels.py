import json

import pytest

from memserve_jax.bench import kernels
from memserve_jax.bench.kernels import KernelBenchOptions, run
from memserve_jax.core.errors import MemServeError
from tests.unit.memserve_jax.bench.test_kernel_case import case

QUICK = {"num_rounds": 2, "round_s": 1e-3, "probe_bytes": 1 << 16, "probe_size": 32}


class SlowPeer:
    """Takes a second for decode, and cannot do prefill."""

    name, version = "snail", "snail 1.0"

    def takes(self, case):
        return "attention" in case.op

    def seconds(self, case, num_calls):
        if case.op == "ragged_paged_attention":
            raise MemServeError("too many tokens for me")
        return 1.0


def test_cases_are_measured_beside_bounds_and_peers_or_skipped_by_name():
    cases = (case("paged_attention"), case("ragged_paged_attention"), case("kv_append"))
    big = case("kv_gather", batch=10**6)
    told = []
    report = run(
        KernelBenchOptions(cases=(*cases, big), memory_bytes=1 << 30, most_call_s=1e9, **QUICK),
        peers=[SlowPeer()],
        progress=lambda done, total, what: told.append((done, total)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(report.skipped) == [big.name]
    decode, prefill, append = report.cases
    assert [form.name for form in decode.forms] == ["xla", "reference", "snail"]
    assert decode.forms[0].times_first == 1.0
    assert decode.forms[2].us == 1e6
    assert decode.forms[2].max_error is None
    assert prefill.left_out["snail"] == "too many tokens for me"
    assert append.forms[0].max_error == 0.0
    for found in report.cases:
        for form in found.forms:
            assert form.us > 0
            assert form.fraction > 0
    assert json.loads(json.dumps(report.to_mapping()))["peers"] == {"snail": "snail 1.0"}


def test_what_takes_too_long_at_best_is_skipped():
    options = KernelBenchOptions(
        cases=(case("kv_append"),), memory_bytes=1 << 30, most_call_s=1e-15, **QUICK
    )
    (why,) = run(options).skipped.values()
    assert "at best, more than 1e-15" in why


@pytest.mark.parametrize("op", ["paged_attention", "kv_scatter"])
def test_a_form_that_refuses_is_left_out_in_its_words(monkeypatch, op):
    make_form = kernels.make_form

    def refuse(name, *arguments):
        if name == "new":
            raise NotImplementedError("no such layout\nand more")
        return make_form(name, *arguments)

    monkeypatch.setattr(kernels, "make_form", refuse)
    monkeypatch.setattr(kernels, "form_names", lambda *_: {"xla": None, "new": None})
    report = run(KernelBenchOptions(cases=(case(op),), memory_bytes=1 << 30, **QUICK))
    assert report.cases[0].left_out == {"new": "NotImplementedError: no such layout"}
    assert [form.name for form in report.cases[0].forms] == ["xla"]
