"""Topologies, caching modes and devices, right and wrong."""

import pytest

from memserve_jax.core.config import Config, parse_config
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.types import CachingMode, Role
from memserve_jax.launch.topology import plan_cluster, plan_instance


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("colocated", ["c0"]),
        ("1c", ["c0"]),
        ("2c", ["c0", "c1"]),
        ("1p1d", ["p0", "d0"]),
        ("2p1d", ["p0", "p1", "d0"]),
        ("1p2d", ["p0", "d0", "d1"]),
    ],
)
def test_names_and_consecutive_devices(topology: str, expected: list[str]):
    plan = plan_cluster(Config(topology=topology, tp=2))
    assert [instance.instance for instance in plan.instances] == expected
    assert [instance.devices for instance in plan.instances] == [
        (2 * index, 2 * index + 1) for index in range(len(expected))
    ]
    assert plan.num_devices == 2 * len(expected)


@pytest.mark.parametrize("topology", ["", "0c", "1p", "1d", "p1d1", "1p0d", "01c", "two", "1p1d1c"])
def test_unknown_topologies_are_named(topology: str):
    with pytest.raises(ConfigError, match=r"topology: got .*allowed: colocated"):
        plan_cluster(Config(topology=topology))


def test_caching_defaults_by_topology():
    assert plan_cluster(Config()).caching is CachingMode.ON
    assert plan_cluster(Config(topology="1p1d")).caching is CachingMode.PD_CACHING_3


@pytest.mark.parametrize(
    ("topology", "caching"),
    [("colocated", mode) for mode in CachingMode if mode.startswith("pd_")]
    + [("1p1d", CachingMode.ON), ("2p1d", CachingMode.OFF)],
)
def test_a_mode_must_fit_the_topology(topology: str, caching: CachingMode):
    with pytest.raises(ConfigError, match=f"caching: got '{caching}', allowed with"):
        plan_cluster(Config(topology=topology, caching=caching))


def test_instances_by_hand_mix_tensor_parallelism():
    config = parse_config(
        {
            "instances": [
                {"instance": "left", "role": "prefill", "tp": 2},
                {"instance": "right", "role": "decode", "devices": [5]},
                {"instance": "far", "role": "decode"},
            ]
        }
    )
    plan = plan_cluster(config)
    assert [(each.instance, each.role, each.devices) for each in plan.instances] == [
        ("left", Role.PREFILL, (0, 1)),
        ("right", Role.DECODE, (5,)),
        ("far", Role.DECODE, (6,)),
    ]


def test_a_device_may_be_repeated_where_tp_is_one():
    config = parse_config(
        {
            "instances": [
                {"instance": "p0", "role": "prefill", "devices": [0]},
                {"instance": "d0", "role": "decode", "devices": [0]},
                {"instance": "d1", "role": "decode", "devices": [1]},
            ]
        }
    )
    plan = plan_cluster(config)
    assert plan.num_devices == 2


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (
            [{"instance": "a", "role": "colocated"}, {"instance": "a", "role": "colocated"}],
            "instances: 'a' is given twice",
        ),
        ([{"instance": "a", "role": "prefill"}], "got roles prefill, allowed"),
        (
            [{"instance": "a", "role": "decode"}, {"instance": "b", "role": "colocated"}],
            "got roles colocated, decode, allowed",
        ),
        (
            [{"instance": "a", "role": "colocated", "devices": [1, 1]}],
            r"a.devices: got \[1, 1\], allowed: distinct",
        ),
        (
            [{"instance": "a", "role": "colocated", "devices": [0, 1, 2], "tp": 2}],
            "a.devices: got 3 devices, allowed: 2",
        ),
        ([{"instance": "a", "role": "colocated", "devices": []}], "got 0 devices"),
        (
            [
                {"instance": "a", "role": "colocated", "devices": [0, 1]},
                {"instance": "b", "role": "colocated", "devices": [1]},
            ],
            "a: device 1 is used by another instance, allowed only where tp is 1",
        ),
    ],
)
def test_impossible_instances_are_named(instances: list[dict[str, object]], message: str):
    with pytest.raises(ConfigError, match=message):
        plan_cluster(parse_config({"instances": instances}))


def test_an_instance_alone_has_the_first_devices():
    plan = plan_instance(Config(tp=2), name="d7", role=Role.DECODE)
    (instance,) = plan.instances
    assert (instance.instance, instance.role, instance.devices) == ("d7", Role.DECODE, (0, 1))
    assert plan.caching is CachingMode.PD_CACHING_3
    assert plan_instance(Config(), name="c", role=Role.COLOCATED).caching is CachingMode.ON


def test_an_instance_that_the_file_names_is_as_the_file_says():
    instances = [
        {"instance": "p0", "role": "prefill", "devices": [4, 5]},
        {"instance": "d0", "role": "decode", "tp": 4},
    ]
    config = parse_config({"instances": instances, "caching": "pd_basic", "tp": 8})
    (prefill,) = plan_instance(config, name="p0", role=Role.PREFILL).instances
    (decode,) = plan_instance(config, name="d0", role=Role.DECODE).instances
    (other,) = plan_instance(config, name="d1", role=Role.DECODE).instances
    assert (prefill.devices, decode.tp, other.tp) == ((0, 1), 4, 8)
    with pytest.raises(ConfigError, match="--role: got 'decode', but `instances` has p0 as"):
        plan_instance(config, name="p0", role=Role.DECODE)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65])
def test_a_name_that_cannot_be_is_refused(name: str):
    with pytest.raises(ConfigError, match="--name: got"):
        plan_instance(Config(), name=name, role=Role.COLOCATED)


@pytest.mark.parametrize(("role", "caching"), [(Role.PREFILL, "on"), (Role.COLOCATED, "pd_basic")])
def test_the_caching_mode_of_an_instance_must_fit_its_role(role: Role, caching: str):
    with pytest.raises(ConfigError, match=f"caching: got '{caching}', allowed with"):
        plan_instance(parse_config({"caching": caching}), name="x", role=role)
