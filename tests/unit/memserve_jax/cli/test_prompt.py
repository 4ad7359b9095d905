"""The prompt of a command line: exactly one of a text, standard input and token ids."""

import io
import types

import click
import pytest

from memserve_jax.cli.prompt import given_prompt


def test_a_text_or_ids_or_standard_input(monkeypatch):
    assert given_prompt("hi", None) == ("hi", None)
    assert given_prompt(None, "1,2") == (None, [1, 2])
    stdin = types.SimpleNamespace(buffer=io.BytesIO("héy\n".encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert given_prompt("-", None) == ("héy\n", None)


@pytest.mark.parametrize(
    ("prompt", "token_ids", "said"),
    [(None, None, "got nothing"), ("a", "1", "one of the two"), (None, "1,x", "got '1,x'")],
)
def test_anything_else_is_a_usage_error(prompt, token_ids, said):
    with pytest.raises(click.UsageError, match=said):
        given_prompt(prompt, token_ids)
