"""The command lines of a cluster's processes say all that the config does."""

from typing import Any

import pytest

from memserve_jax.core.config import Config, load_config, parse_config, to_mapping
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.types import CachingMode
from memserve_jax.launch.process_cluster import (
    ClusterCommands,
    check_metrics_ports,
    has_job,
    settings,
)
from memserve_jax.launch.topology import plan_cluster


def commands_of(**sections: Any) -> ClusterCommands:
    config = parse_config(sections)
    plan = plan_cluster(config)
    environments = [{"N": str(index)} for index in range(len(plan.instances))]
    return ClusterCommands(
        config, plan, environment={"N": "s"}, environments=environments, supervisor_pid=9
    )


def options(arguments: Any) -> dict[str, str]:
    """Returns option -> value, `--set` left out."""
    given = list(arguments)[4:]
    pairs = zip(given[::2], given[1::2], strict=True)
    return {option: value for option, value in pairs if option != "--set"}


def test_settings_make_the_same_config():
    config = parse_config(
        {
            "model": {"path": "a: b #ü", "dtype": "bfloat16"},
            "mempool": {"hbm_blocks": 7, "transports": ["tcp", "device_put"], "host_gb": 0.5},
            "engine": {"warm_up": False, "compile_cache": ""},
            "scheduler": {"policy": "session", "cost": {"fixed_s": 0.25}},
        }
    )
    pairs = settings(config)
    assert pairs[::2] == ["--set"] * 9
    assert load_config(None, overrides=pairs[1::2]) == config
    assert settings(Config()) == []


def test_the_scheduler_comes_back_on_its_port():
    commands = commands_of(host="0.0.0.0", port=0, scheduler={"policy": "session"})
    first, again = commands.scheduler(None), commands.scheduler(1234)
    assert options(first.arguments) == {"--supervisor": "9", "--host": "0.0.0.0", "--port": "0"}
    assert options(again.arguments)["--port"] == "1234"
    assert 'scheduler.policy="session"' in first.arguments
    assert (first.name, first.environment) == ("scheduler", {"N": "s"})


def test_every_instance_is_told_who_it_is():
    commands = commands_of(topology="2p1d", tp=2, caching="pd_basic", port=5)
    p0, p1, d0 = commands.instances("127.0.0.1:5")
    assert [each.name for each in (p0, p1, d0)] == ["p0", "p1", "d0"]
    assert options(d0.arguments) == {
        "--supervisor": "9",
        "--name": "d0",
        "--role": "decode",
        "--tp": "2",
        "--caching": "pd_basic",
        "--scheduler": "127.0.0.1:5",
        "--host": "127.0.0.1",
        "--port": "0",
    }
    assert d0.environment == {"N": "2"}


def test_an_instance_has_the_caching_mode_that_the_topology_gives():
    (c0,) = commands_of().instances("127.0.0.1:5")
    assert options(c0.arguments)["--caching"] == CachingMode.ON.value
    assert to_mapping(Config())["caching"] is None


def test_a_scheduler_on_every_address_is_dialled_on_loopback():
    for host in ("0.0.0.0:7", "[::]:7"):
        (c0,) = commands_of().instances(host)
        assert options(c0.arguments)["--scheduler"] == "127.0.0.1:7"


def test_without_collective_everyone_is_alone():
    assert not has_job(parse_config({"mempool": {"transports": ["tcp"]}}))
    commands = commands_of(topology="1p1d")
    teams = commands.teams("127.0.0.1:5")
    assert [team.names for team in teams] == [("p0",), ("d0",)]
    assert [team.commands(team.names)[0] for team in teams] == commands.instances("127.0.0.1:5")


def test_with_collective_all_instances_are_one_job_another_in_every_life():
    commands = commands_of(topology="1p2d", mempool={"transports": ["collective", "tcp"]})
    (team,) = commands.teams("127.0.0.1:5")
    assert team.names == ("p0", "d0", "d1")
    jobs = [
        [options(command.arguments)["--job"].split(",") for command in team.commands(names)]
        for names in (team.names, ("p0", "d1"))
    ]
    assert [[job[1:] for job in life] for life in jobs] == [
        [["0", "3"], ["1", "3"], ["2", "3"]],
        [["0", "2"], ["1", "2"]],
    ]
    coordinators = [{job[0] for job in life} for life in jobs]
    assert all(len(life) == 1 for life in coordinators)
    assert all(found.startswith("127.0.0.1:") for life in coordinators for found in life)
    assert [command.name for command in team.commands(("p0", "d1"))] == ["p0", "d1"]


def metrics_ports(commands: ClusterCommands) -> list[str]:
    """Returns the last `metrics.port` that the scheduler and each instance is told."""
    found = []
    for command in (commands.scheduler(None), *commands.instances("127.0.0.1:5")):
        given = [word for word in command.arguments if word.startswith("metrics.port=")]
        found.append(given[-1].removeprefix("metrics.port=") if given else "")
    return found


def test_each_process_has_a_port_of_its_own_for_its_metrics():
    assert metrics_ports(commands_of(topology="1p1d", metrics={"port": 9400})) == [
        *("9400", "9401", "9402")
    ]
    assert metrics_ports(commands_of(topology="1p1d")) == ["", "", ""]  # any free one
    off = commands_of(topology="1p1d", metrics={"port": None})
    assert metrics_ports(off) == ["null", "null", "null"]


def test_ports_beyond_the_last_are_refused():
    config = parse_config({"metrics": {"port": 65534}})
    check_metrics_ports(config, 1)
    with pytest.raises(ConfigError, match=r"metrics\.port: got 65534, .*up to 65533"):
        check_metrics_ports(config, 2)
