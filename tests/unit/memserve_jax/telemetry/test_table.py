"""Tables in a document."""

import pytest

from memserve_jax.telemetry.scheduler_metrics import REQUESTS
from memserve_jax.telemetry.table import main, renewed, to_markdown

DOCUMENT = """before
<!-- metrics of the scheduler -->
| stale |
<!-- end of metrics -->
after
"""


def test_a_row_says_what_the_metric_says():
    head, rule, row = to_markdown([REQUESTS]).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|") == 6
    assert row.startswith("| `memserve_scheduler_requests_total` | counter | `code` | Generate")


def test_only_what_is_marked_changes(tmp_path):
    path = tmp_path / "document.md"
    path.write_text(DOCUMENT, encoding="utf-8")
    main(str(path))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    assert "`memserve_scheduler_requests_total`" in text
    assert renewed(text) == text


def test_an_unknown_table_is_an_error():
    with pytest.raises(KeyError):
        renewed("<!-- metrics of nobody -->\n<!-- end of metrics -->")
