import io

import rich.console

from memserve_jax.bench.kernel_table import notes, tables
from tests.helpers.kernel_reports import made_up_report


def test_a_table_for_each_op_and_a_line_a_form():
    shown = io.StringIO()
    for table in tables(made_up_report()):
        rich.console.Console(file=shown, width=120).print(table)
    text = shown.getvalue()
    for part in ("kv_gather, small", "copies 20.0 GB/s", "GFLOP/s", "12.5", "0.75", "4.00"):
        assert part in text
    assert text.count("1.0e-03") == 3
    assert "snail 1.0" in text


def test_what_is_missing_is_named():
    lines = notes(made_up_report())
    assert lines[0] == "skipped: huge: needs 9.0 GiB, the device has 1.0"
    assert lines[3].startswith("left out: reference, kv_gather small, batch 2, context 20")
