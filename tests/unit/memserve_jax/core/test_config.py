"""Configs from files, `--set` and flags; what is wrong is named in one line."""

import pytest
import yaml

from memserve_jax.core.config import Config, load_config, parse_config, to_mapping
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.types import CachingMode, Role


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_defaults():
    config = load_config(None)
    assert config == Config()
    assert (config.topology, config.caching, config.port) == ("colocated", None, 50051)


def test_an_empty_file_is_all_defaults(file):
    assert load_config(file("")) == Config()


def test_flag_before_set_before_file_before_default(file):
    path = file("engine: {max_running: 4, chunk_tokens: 64}\nport: 1\ntp: 2\n")
    config = load_config(
        path, overrides=["engine.max_running=8", "port=2"], flags={"port": 3, "tp": None}
    )
    assert (config.engine.max_running, config.engine.chunk_tokens) == (8, 64)
    assert (config.port, config.tp) == (3, 2)


def test_set_reads_yaml():
    config = load_config(None, overrides=["caching=off", "engine.warm_up=false", "model.path=m"])
    assert config.caching is CachingMode.OFF
    assert config.engine.warm_up is False
    assert config.model.path == "m"


@pytest.mark.parametrize("word", ["on", "off", "'on'", '"off"'])
def test_yamls_own_booleans_are_caching_modes(file, word):
    assert load_config(file(f"caching: {word}")).caching == word.strip("'\"")


def test_instances_by_hand(file):
    config = load_config(
        file(
            "instances:\n- {instance: p0, role: prefill, devices: [0, 1], tp: 2}\n"
            "- {instance: d0, role: decode}\n"
        )
    )
    assert [entry.role for entry in config.instances] == [Role.PREFILL, Role.DECODE]
    assert config.instances[0].devices == (0, 1)


def test_what_is_logged_reads_back():
    config = parse_config({"instances": [{"instance": "c0", "role": "colocated"}], "caching": "on"})
    assert parse_config(yaml.safe_load(yaml.safe_dump(to_mapping(config)))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mempool: {hbm_block: 3}", "mempool.hbm_block: unknown key, did you mean hbm_blocks?"),
        ("nonsense: 1", "nonsense: unknown key, allowed: model, mempool, engine"),
        (
            "scheduler: {cost: {fixed: 1}}",
            "scheduler.cost.fixed: unknown key, did you mean fixed_s",
        ),
        ("instances: [{instance: a, role: decode, dev: 1}]", "instances.0.dev: unknown key"),
        ("instances: [{instance: 'a b', role: decode}]", "instances.0.instance: got 'a b'"),
        ("instances: [{instance: a}]", "instances.0.role: "),
        ("engine: {max_running: 0}", "engine.max_running: got 0, allowed: .* greater than"),
        ("engine: 3", "engine: got 3"),
        ("port: 70000", "port: got 70000"),
        ("caching: sometimes", "caching: got 'sometimes', allowed: .*pd_caching_3"),
        ("scheduler: {policy: fastest}", "scheduler.policy: got 'fastest', allowed: .*min_ttft"),
        ("model: {dtype: int4}", "model.dtype: got 'int4', allowed: .*bfloat16"),
        ("[1, 2]", "got list, allowed: a mapping of sections"),
        ("a: [", "not YAML: "),
        ("1: 2", "1: unknown key"),
    ],
)
def test_what_is_wrong_is_named(file, text, message):
    path = file(text)
    with pytest.raises(ConfigError, match=message) as failure:
        load_config(path)
    assert str(failure.value).startswith(path)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("port", "--set port: allowed: section.key=value"),
        ("=3", "--set =3: allowed"),
        ("port.x.y=3", "--set port.x.y=3: port is not a section"),
        ("port=[", "--set port=\\[: not YAML"),
        ("engine.max_run=3", "engine.max_run: unknown key, did you mean max_running"),
    ],
)
def test_bad_overrides(file, override, message):
    with pytest.raises(ConfigError, match=message) as failure:
        load_config(file("port: 1"), overrides=[override])
    assert "\n" not in str(failure.value)


def test_an_absent_file():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read: No such file"):
        load_config("nowhere.yaml")


def test_the_thresholds_of_the_automatic_mode_are_in_order():
    with pytest.raises(ConfigError, match="auto_low_tokens: got 9, allowed: at most mempool"):
        load_config(None, overrides=["mempool.auto_low_tokens=9", "mempool.auto_high_tokens=8"])
    load_config(None, overrides=["mempool.auto_low_tokens=8", "mempool.auto_high_tokens=8"])
