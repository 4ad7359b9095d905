"""A fit as a file: what is written is what is read, and what is wrong is named."""

import copy
import logging

import pytest
import yaml

from memserve_jax.core.config import CostSection, parse_config
from memserve_jax.core.cost_file import (
    CostFile,
    fetch_cost_of,
    log_differences,
    parse_cost_file,
    prefill_cost_of,
    read_cost_file,
    to_values,
)
from memserve_jax.core.cost_model import CostModel
from memserve_jax.core.errors import ConfigError

VALUES = {
    "fitted": "2026-11-28",
    "device": "cpu",
    "model": "tiny",
    "versions": {"jax": "0.11.2"},
    "engine": {
        "chunk_tokens": 32,
        "max_running": 4,
        "max_context_tokens": 128,
        "block_size_tokens": 16,
        "dtype": "float32",
        "tp": 1,
    },
    "prefill": {
        "prompt_s": 1.0e-3,
        "launch_s": 2.0e-3,
        "matmul_s": {32: 0.02, 16: 0.01},
        "attention": {
            "query_tile_tokens": 128,
            "key_tile_tokens": 256,
            "s_per_key": 1.0e-6,
            "s_per_pair": 0.0,
        },
    },
    "fetch": {"transport": "tcp", "fixed_s": 4.0e-3, "bytes_per_s": 2.0e9},
}


def written(tmp_path, values) -> str:
    path = tmp_path / "cost.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_fit_survives_its_file(tmp_path):
    fit = parse_cost_file(VALUES, source="here")
    assert isinstance(fit, CostFile)
    assert read_cost_file(written(tmp_path, to_values(fit))) == fit
    cost = fit.prefill_cost
    assert (cost.rungs, cost.matmul_s, cost.chunk_tokens) == ((16, 32), (0.01, 0.02), 32)


def test_the_config_names_the_fit_or_is_linear(tmp_path):
    section = CostSection(path=written(tmp_path, VALUES))
    assert prefill_cost_of(section) == parse_cost_file(VALUES, source="here").prefill_cost
    fetch = fetch_cost_of(section)
    assert fetch.predicted_s(2_000_000_000) == pytest.approx(1.004)
    linear = CostSection(s_per_token=2e-4, fetch_fixed_s=0.5)
    wanted = CostModel(fixed_s=5e-3, s_per_token=2e-4, s_per_token_pair=0.0)
    assert prefill_cost_of(linear) == wanted
    assert fetch_cost_of(linear).prefill == wanted
    assert fetch_cost_of(linear).fixed_s == 0.5


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("prefill.launch_s", -1.0, "prefill.launch_s: got -1.0, allowed:"),
        ("prefill.matmul_s", {}, "prefill.matmul_s: got {}, allowed:"),
        ("fetch.bytes_per_s", 0, "fetch.bytes_per_s: got 0, allowed:"),
        ("fetch.bytes_per_s", float("nan"), "fetch.bytes_per_s: got nan, allowed:"),
        ("engine.tp", None, "engine.tp: got None, allowed:"),
        ("speed", 1, "speed: got 1, allowed:"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, key, value, said):
    values = copy.deepcopy(VALUES)
    *sections, leaf = key.split(".")
    node = values
    for section in sections:
        node = node[section]
    node[leaf] = value
    with pytest.raises(ConfigError, match=r"scheduler.cost.path: .*cost.yaml: ") as caught:
        read_cost_file(written(tmp_path, values))
    assert said in str(caught.value)


def test_what_is_no_fit_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.yaml: cannot read: No such file"):
        read_cost_file("nowhere.yaml")
    path = tmp_path / "cost.yaml"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"cost.yaml: not YAML: "):
        read_cost_file(str(path))
    path.write_text("- 1")
    with pytest.raises(ConfigError, match=r"cost.yaml: the whole: got "):
        read_cost_file(str(path))


def test_other_engines_than_those_measured_are_warned_of(tmp_path, caplog):
    values = {
        "engine": {"chunk_tokens": 64, "max_running": 4},
        "scheduler": {"cost": {"path": written(tmp_path, VALUES)}},
    }
    with caplog.at_level(logging.INFO):
        log_differences(parse_config(values))
    assert "engine.chunk_tokens is 64, fitted with 32" in caplog.text
    assert "max_running" not in caplog.text
    caplog.clear()
    log_differences(parse_config({}))
    assert not caplog.records
