"""What each process is let see of a machine: its own devices and no other's."""

import asyncio
import os
from typing import Any

import pytest

from memserve_jax.core.config import parse_config
from memserve_jax.core.errors import ConfigError
from memserve_jax.launch.machine import Machine, environments, probe_machine
from memserve_jax.launch.topology import ClusterPlan, plan_cluster

CPU = Machine("cpu", ())
GPUS = Machine("gpu", (0, 1, 2, 3))
V5E = Machine("tpu", tuple(range(8)))
V7X = Machine("tpu", (0, 0, 1, 1))  # two devices a chip


def plan(topology: str = "1p1d", **sections: Any) -> ClusterPlan:
    return plan_cluster(parse_config({"topology": topology, **sections}))


def instances(*devices: list[int]) -> dict[str, Any]:
    return {
        "instances": [
            {"instance": f"c{index}", "role": "colocated", "devices": each}
            for index, each in enumerate(devices)
        ]
    }


def of(found: list[dict[str, str]], name: str) -> list[str | None]:
    return [environment.get(name) for environment in found]


def test_a_cpu_process_emulates_exactly_its_devices():
    before = {"XLA_FLAGS": "--xla_dump_to=/x --xla_force_host_platform_device_count=8"}
    found = environments(CPU, plan("1p2d", tp=2), before)
    assert of(found, "JAX_NUM_CPU_DEVICES") == ["2"] * 3
    assert of(found, "XLA_FLAGS") == ["--xla_dump_to=/x"] * 3


def test_a_gpu_process_sees_its_gpus():
    found = environments(GPUS, plan(tp=2), {"HOME": "/"})
    assert of(found, "CUDA_VISIBLE_DEVICES") == ["0,1", "2,3"]
    assert of(found, "HOME") == ["/", "/"]
    assert of(found, "XLA_PYTHON_CLIENT_MEM_FRACTION") == [None, None]


def test_gpus_that_this_process_is_let_see_are_shared_out():
    found = environments(GPUS, plan(), {"CUDA_VISIBLE_DEVICES": "7, 5,GPU-ab,4"})
    assert of(found, "CUDA_VISIBLE_DEVICES") == ["7", "5"]


def test_processes_on_one_gpu_share_its_memory():
    found = environments(GPUS, plan(**instances([0], [0], [1])), {})
    assert of(found, "XLA_PYTHON_CLIENT_MEM_FRACTION") == ["0.3750", "0.3750", None]
    found = environments(
        GPUS, plan(**instances([0], [0])), {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}
    )
    assert of(found, "XLA_PYTHON_CLIENT_MEM_FRACTION") == ["0.4500", "0.4500"]


def test_a_tpu_process_sees_its_chips_as_a_system_of_its_own():
    found = environments(V5E, plan(tp=4), {})
    assert of(found, "TPU_VISIBLE_CHIPS") == ["0,1,2,3", "4,5,6,7"]
    assert of(found, "TPU_CHIPS_PER_PROCESS_BOUNDS") == ["2,2,1"] * 2
    assert of(found, "TPU_PROCESS_BOUNDS") == ["1,1,1"] * 2
    assert len(set(of(found, "TPU_PROCESS_PORT"))) == 2
    found = environments(V7X, plan(tp=2), {})
    assert of(found, "TPU_VISIBLE_CHIPS") == ["0", "1"]


@pytest.mark.parametrize(
    ("machine", "config", "message"),
    [
        (GPUS, {"topology": "3p2d"}, r"devices: the topology asks for 5, this machine has 4 \(gpu"),
        (V5E, instances([0], [0]), "c1: TPU chip 0 is c0's"),
        (V7X, instances([0]), r"c0.devices: got \[0\], allowed: all devices of a chip"),
        (V5E, instances([0, 1, 2]), "tp: got 3 TPU chips for c0, allowed: 1, 2, 4, 8"),
    ],
)
def test_what_a_machine_cannot_give(machine: Machine, config: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        environments(machine, plan_cluster(parse_config(config)), {})


def test_where_jax_is_told_to_use_the_cpu_nobody_asks():
    assert asyncio.run(probe_machine({"JAX_PLATFORMS": "cpu"})) == CPU


def test_jax_itself_is_asked():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    found = asyncio.run(probe_machine(environment))
    assert (found.platform == "cpu") == (found.chips == ())


def test_a_platform_that_is_not_there_is_an_error():
    with pytest.raises(ConfigError, match=r"devices: jax finds none: .*nonesuch"):
        asyncio.run(probe_machine({**os.environ, "JAX_PLATFORMS": "nonesuch"}))
