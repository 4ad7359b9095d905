"""Options that client commands share."""

import click
import pytest

from memserve_jax.cli.options import client_options, usage_errors

UNSET = {"greedy": False, "temperature": None, "timeout": None, "stop": (), "ignore_eos": False}


def test_unset_is_none():
    assert client_options(UNSET) == {
        "temperature": None, "timeout_s": None, "stop": None, "ignore_eos": None
    }  # fmt: skip


@pytest.mark.parametrize("temperature", [None, 0.0])
def test_greedy(temperature):
    found = client_options({**UNSET, "greedy": True, "temperature": temperature})
    assert found["temperature"] == 0.0


def test_greedy_and_warm():
    with pytest.raises(click.UsageError, match="--greedy: got --temperature"):
        client_options({**UNSET, "greedy": True, "temperature": 0.5})


def test_a_bad_argument_is_a_usage_error():
    with pytest.raises(click.UsageError, match="seed: too big"), usage_errors():
        raise ValueError("seed: too big")
