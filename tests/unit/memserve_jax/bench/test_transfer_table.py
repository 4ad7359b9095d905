import io

import rich.console

from memserve_jax.bench.transfer_table import WIDTH, table
from tests.helpers.transfer_reports import made_up_report


def test_every_bound_and_case_has_a_line_that_fits():
    out = io.StringIO()
    rich.console.Console(file=out, width=WIDTH).print(table(made_up_report()))
    text = out.getvalue()
    assert text.count("\n  memcpy ") == 2 and text.count("\n  one socket ") == 2
    for words in ("2->2 (3 heads)", "hbm->host", "scattered", "jax_transfer", "256"):
        assert words in text
    assert "…" not in text
