"""The examples in `docs/` do what they say."""

import pathlib
import re

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.telemetry.counter_metrics import COUNTERS
from memserve_jax.telemetry.table import TABLES, renewed

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def test_the_examples_of_mempool_run():
    text = (DOCS / "mempool.md").read_text(encoding="utf-8")
    examples = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(examples) == 2
    names: dict[str, object] = {}
    for example in examples:
        above = "\n" * text.count("\n", 0, example.start(1))  # so that errors name the line
        exec(compile(above + example[1], str(DOCS / "mempool.md"), "exec"), names)


def test_operations_lists_every_metric_as_the_code_has_it():
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    for title in TABLES:
        assert text.count(f"<!-- metrics of {title} -->") == 1, title
    advice = "run: .venv/bin/python -m memserve_jax.telemetry.table docs/operations.md"
    assert renewed(text) == text, advice


def test_every_total_of_an_instance_is_a_metric():
    fields = {field.name for field in pb.Counters.DESCRIPTOR.fields}
    assert set(COUNTERS) == fields, "add an entry to memserve_jax/telemetry/counter_metrics.py"
