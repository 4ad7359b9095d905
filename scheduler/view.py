"""What the scheduler believes about the cluster at one moment, for one request."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from memserve_jax.core.cost_model import PrefillCost, PrefillWork
from memserve_jax.core.errors import NoInstanceError
from memserve_jax.core.types import InstanceId, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceLoad:
    """One instance that takes requests."""

    instance: InstanceId
    role: Role
    cost: PrefillCost  # of a prefill there
    queued: PrefillWork = field(default_factory=PrefillWork)  # prefills it has not finished
    sequences: int = 0  # requests it has: waiting, running, on their way to it
    indexed_blocks: int = 0  # historical blocks the global tree knows of


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """A snapshot made for one request, so a policy needs no lock, no clock and no counter."""

    loads: tuple[InstanceLoad, ...]  # in no order that means anything
    prefill_cached_tokens: Mapping[InstanceId, int]  # of this prompt, that a prefill there skips
    decode_cached_tokens: Mapping[InstanceId, int]  # of this prompt, that need not move there
    first_block: bytes  # the key of the prompt's first block; all of a shorter prompt
    turn: int = 0  # requests routed before

    def prefillers(self) -> tuple[InstanceLoad, ...]:
        """Returns the instances that a request can start on.

        Those are the colocated ones, and the prefill ones while anything decodes. A colocated
        instance never decodes for a prefill instance: it has a caching mode of its own.

        Raises:
          NoInstanceError: there are none.
        """
        has_decode = any(load.role is Role.DECODE for load in self.loads)
        able = tuple(
            load
            for load in self.loads
            if load.role is Role.COLOCATED or (load.role is Role.PREFILL and has_decode)
        )
        if not able:
            names = sorted(f"{load.instance} ({load.role.value})" for load in self.loads)
            raise NoInstanceError(
                f"no instance to route to: live are {', '.join(names) or 'none'}, "
                "needed: a colocated one, or a prefill and a decode one"
            )
        return able

    def decoders(self) -> tuple[InstanceLoad, ...]:
        """Returns the decode instances: not empty where `prefillers` offers a prefill one."""
        return tuple(load for load in self.loads if load.role is Role.DECODE)
