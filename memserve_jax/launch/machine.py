"""Which devices this machine has, and how a process is made to see some of them. No jax here.

Device numbers are jax's own in a process that sees all.
"""

import asyncio
import collections
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memserve_jax.core.errors import ConfigError
from memserve_jax.launch.topology import ClusterPlan, InstancePlan

MEMORY_FRACTION = 0.75  # of a GPU, that jax takes unless told otherwise
TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # chips of a process -> their box
_FIRST_TPU_PORT = 8476
_COUNT_FLAG = "--xla_force_host_platform_device_count"

_PROBE = """
import json, jax
devices = jax.devices()
places = [tuple(getattr(device, "coords", None) or (device.id,)) for device in devices]
chips = list(dict.fromkeys(places))
print(json.dumps([devices[0].platform, [chips.index(place) for place in places]]))
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """What jax sees in a process that is let see everything."""

    platform: str  # cpu, gpu, tpu
    chips: tuple[int, ...]  # device -> the chip that it is on; empty for cpu: as many as wanted


async def probe_machine(environment: Mapping[str, str]) -> Machine:
    """Returns the machine as jax finds it, in a process that ends before this returns.

    Raises:
      ConfigError: jax finds no devices where `environment` sends it.
    """
    if environment.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return Machine("cpu", ())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROBE),
        env={**environment, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = err.decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
        raise ConfigError(f"devices: jax finds none: {reason}")
    platform, chips = json.loads(out.splitlines()[-1])
    return Machine(platform, () if platform == "cpu" else tuple(chips))


def environments(
    machine: Machine, plan: ClusterPlan, environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """Returns the environment of each instance's process: `environment`, and its devices alone.

    Raises:
      ConfigError: there are too few devices, or the platform cannot share them out so.
    """
    num_devices = len(machine.chips)
    if machine.platform != "cpu" and plan.num_devices > num_devices:
        raise ConfigError(
            f"devices: the topology asks for {plan.num_devices}, this machine has {num_devices} "
            f"({machine.platform}), allowed: at most {num_devices}, or `instances` that name a "
            f"device twice"
        )
    if machine.platform == "cpu":
        return [_cpu(each, environment) for each in plan.instances]
    if machine.platform == "tpu":
        return _tpu(machine, plan.instances, environment)
    uses = collections.Counter(device for each in plan.instances for device in each.devices)
    return [
        _gpu(each, environment, num_sharing=max(uses[device] for device in each.devices))
        for each in plan.instances
    ]


def _cpu(plan: InstancePlan, environment: Mapping[str, str]) -> dict[str, str]:
    flags = environment.get("XLA_FLAGS", "").split()
    others = [flag for flag in flags if not flag.startswith(_COUNT_FLAG)]
    return {
        **environment,
        "XLA_FLAGS": " ".join(others),
        "JAX_NUM_CPU_DEVICES": str(plan.tp),
    }


def _gpu(plan: InstancePlan, environment: Mapping[str, str], *, num_sharing: int) -> dict[str, str]:
    seen = _visible(environment, "CUDA_VISIBLE_DEVICES")
    names = [seen[device] if seen else str(device) for device in plan.devices]
    own = {**environment, "CUDA_VISIBLE_DEVICES": ",".join(names)}
    if num_sharing > 1:
        fraction = float(environment.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or MEMORY_FRACTION)
        own["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{fraction / num_sharing:.4f}"
    return own


def _tpu(
    machine: Machine, plans: Sequence[InstancePlan], environment: Mapping[str, str]
) -> list[dict[str, str]]:
    seen = _visible(environment, "TPU_VISIBLE_CHIPS")
    owners: dict[int, InstancePlan] = {}
    found = []
    for index, plan in enumerate(plans):
        chips = sorted({machine.chips[device] for device in plan.devices})
        _check_chips(machine, plan, chips)
        for chip in chips:
            owner = owners.setdefault(chip, plan)
            if owner is not plan:
                raise ConfigError(
                    f"instances: {plan.instance}: TPU chip {chip} is {owner.instance}'s, allowed: "
                    f"chips of its own, or one process for all (without --processes)"
                )
        port = str(_FIRST_TPU_PORT + index)
        found.append(
            {
                **environment,
                "TPU_VISIBLE_CHIPS": ",".join(seen[chip] if seen else str(chip) for chip in chips),
                "TPU_CHIPS_PER_PROCESS_BOUNDS": TPU_BOUNDS[len(chips)],
                "TPU_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
                "TPU_PROCESS_PORT": port,
                "CLOUD_TPU_TASK_ID": "0",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            }
        )
    return found


def _check_chips(machine: Machine, plan: InstancePlan, chips: Sequence[int]) -> None:
    whole = [device for device, chip in enumerate(machine.chips) if chip in chips]
    if sorted(plan.devices) != whole:
        raise ConfigError(
            f"instances: {plan.instance}.devices: got {list(plan.devices)}, allowed: all devices "
            f"of a chip, as in {whole}"
        )
    if len(chips) not in TPU_BOUNDS:
        allowed = ", ".join(map(str, TPU_BOUNDS))
        raise ConfigError(f"tp: got {len(chips)} TPU chips for {plan.instance}, allowed: {allowed}")


def _visible(environment: Mapping[str, str], variable: str) -> list[str]:
    """Returns the devices that this process itself is let see; empty: all."""
    return [name.strip() for name in environment.get(variable, "").split(",") if name.strip()]
