"""Which instances a cluster has, on which devices, and what it caches. Never loads jax.

Everything wrong with a topology is found here, before a device or a checkpoint is touched.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from memserve_jax.core.config import Config, InstanceSection
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.types import CachingMode, InstanceId, Role

COLOCATED_MODES = (CachingMode.OFF, CachingMode.ON)
_LETTER = {Role.PREFILL: "p", Role.DECODE: "d", Role.COLOCATED: "c"}
_ALLOWED = "colocated, Nc (2c) or NpMd (1p1d), each number at least 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancePlan:
    """One instance: its name, what it does and the devices of its mesh."""

    instance: InstanceId
    role: Role
    devices: tuple[
        int, ...
    ]  # indices into the process's devices; as many as its tensor parallelism

    @property
    def tp(self) -> int:
        """Tensor parallelism: devices of the mesh."""
        return len(self.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """A whole cluster."""

    instances: tuple[InstancePlan, ...]
    caching: CachingMode

    @property
    def num_devices(self) -> int:
        """Devices the process needs: one more than the highest index in use."""
        return 1 + max(device for plan in self.instances for device in plan.devices)


def plan_cluster(config: Config) -> ClusterPlan:
    """Returns the instances that `config` asks for.

    Raises:
      ConfigError: an unknown topology, a caching mode that does not fit it, instances that
        cannot work together, or devices that are given wrongly.
    """
    sections = config.instances or _sections(config.topology, config.tp)
    roles = [section.role for section in sections]
    _check_roles(sections)
    caching = resolve_caching(config.caching, disaggregated=Role.COLOCATED not in roles)
    return ClusterPlan(instances=_place(sections), caching=caching)


def plan_instance(config: Config, *, name: str, role: Role) -> ClusterPlan:
    """Returns the plan of one instance alone in its process, on the process's first devices.

    Where `config.instances` names it, its role must be the same, and its size is taken from
    there; `devices` count for that alone: a process sees the devices that its environment says.

    Raises:
      ConfigError: a wrong name, another role, a caching mode that does not fit the role.
    """
    sections = {section.instance: section for section in config.instances}
    section = sections.get(name)
    if section is None:
        try:
            section = InstanceSection(instance=name, role=role, tp=config.tp)
        except ValueError:  # pydantic's, whose text is many lines
            raise ConfigError(
                f"--name: got {name!r}, allowed: 1 to 64 of A-Z a-z 0-9 . _ -"
            ) from None
    if section.role is not role:
        raise ConfigError(
            f"--role: got {role.value!r}, but `instances` has {name} as {section.role.value!r}"
        )
    caching = resolve_caching(config.caching, disaggregated=role is not Role.COLOCATED)
    (sized,) = _place([section])
    devices = tuple(range(sized.tp))
    return ClusterPlan(
        instances=(InstancePlan(instance=sized.instance, role=role, devices=devices),),
        caching=caching,
    )


def resolve_caching(caching: CachingMode | None, *, disaggregated: bool) -> CachingMode:
    """Returns the caching mode asked for, or the default of the topology.

    Raises:
      ConfigError: the mode does not fit the topology.
    """
    if caching is None:
        return CachingMode.PD_CACHING_3 if disaggregated else CachingMode.ON
    if (caching in COLOCATED_MODES) == disaggregated:
        allowed = [mode for mode in CachingMode if (mode in COLOCATED_MODES) != disaggregated]
        kind = "prefill and decode instances" if disaggregated else "colocated instances"
        raise ConfigError(
            f"caching: got {str(caching)!r}, allowed with {kind}: {', '.join(allowed)}"
        )
    return caching


def _sections(topology: str, tp: int) -> tuple[InstanceSection, ...]:
    """Returns the instances of `colocated`, `Nc` or `NpMd`, prefill first."""
    text = "1c" if topology == "colocated" else topology
    colocated = re.fullmatch(r"([1-9]\d{0,3})c", text)
    disaggregated = re.fullmatch(r"([1-9]\d{0,3})p([1-9]\d{0,3})d", text)
    if colocated:
        counts = [(Role.COLOCATED, int(colocated[1]))]
    elif disaggregated:
        counts = [(Role.PREFILL, int(disaggregated[1])), (Role.DECODE, int(disaggregated[2]))]
    else:
        raise ConfigError(f"topology: got {topology!r}, allowed: {_ALLOWED}")
    return tuple(
        InstanceSection(instance=f"{_LETTER[role]}{index}", role=role, tp=tp)
        for role, count in counts
        for index in range(count)
    )


def _check_roles(sections: Sequence[InstanceSection]) -> None:
    names = Counter(section.instance for section in sections)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConfigError(f"instances: {twice[0]!r} is given twice, allowed: one name each")
    roles = {section.role for section in sections}
    if roles not in ({Role.COLOCATED}, {Role.PREFILL, Role.DECODE}):
        got = ", ".join(sorted(roles))
        raise ConfigError(
            f"instances: got roles {got}, allowed: only colocated, or both prefill and decode"
        )


def _place(sections: Sequence[InstanceSection]) -> tuple[InstancePlan, ...]:
    """Gives each instance without `devices` the next `tp` ones after the highest used so far."""
    plans = []
    next_device = 0
    for section in sections:
        devices = section.devices
        if devices is None:
            devices = tuple(range(next_device, next_device + section.tp))
        _check_devices(section.instance, devices, section.tp)
        next_device = max(next_device, *(device + 1 for device in devices))
        plans.append(
            InstancePlan(instance=InstanceId(section.instance), role=section.role, devices=devices)
        )
    uses = Counter(device for plan in plans for device in plan.devices)
    for plan in plans:
        shared = [device for device in plan.devices if uses[device] > 1]
        if plan.tp > 1 and shared:
            # Two meshes that share a device run collectives in no common order: a deadlock.
            raise ConfigError(
                f"instances: {plan.instance}: device {shared[0]} is used by another instance, "
                f"allowed only where tp is 1"
            )
    return tuple(plans)


def _check_devices(instance: str, devices: tuple[int, ...], tp: int) -> None:
    if len(set(devices)) != len(devices) or any(device < 0 for device in devices):
        raise ConfigError(
            f"instances: {instance}.devices: got {list(devices)}, allowed: distinct indices from 0"
        )
    if tp not in (1, len(devices)) or not devices:
        raise ConfigError(
            f"instances: {instance}.devices: got {len(devices)} devices, allowed: {tp}, its tp"
        )
