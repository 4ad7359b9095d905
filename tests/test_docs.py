"""The examples in `docs/` do what they say."""

import pathlib
import re

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def test_the_examples_of_mempool_run():
    text = (DOCS / "mempool.md").read_text(encoding="utf-8")
    examples = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(examples) == 2
    names: dict[str, object] = {}
    for example in examples:
        above = "\n" * text.count("\n", 0, example.start(1))  # so that errors name the line
        exec(compile(above + example[1], str(DOCS / "mempool.md"), "exec"), names)
