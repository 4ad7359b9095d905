"""The parts of the `scheduler` section for more requests than the instances can take."""

import math
import typing
from collections.abc import Mapping

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from memserve_jax.core.errors import ConfigError

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class QueueSection:
    """The queue in front of the instances: who waits there is ordered, fair, and cheap to drop."""

    max_waiting: int = Field(default=1024, ge=0)
    max_waiting_per_tenant: int | None = Field(default=None, ge=1)  # None: max_waiting
    instance_s: float = Field(default=2.0, gt=0)  # of prefill that an instance is given ahead
    instance_sequences: int = Field(default=64, ge=1)  # nor more; more than engine.max_running
    patience_s: float = Field(default=30.0, gt=0)  # then one in four goes before its betters


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FairnessSection:
    """Between whom the instances are shared, of those of one priority that wait."""

    # key: the label of the client's key (`security.api_keys`), or without one the cache_salt
    by: typing.Literal["key", "cache_salt", "session_id", "none"] = "key"
    weights: Mapping[str, float] = Field(default_factory=dict)  # tenant -> share; others: 1

    @pydantic.model_validator(mode="after")
    def _weights_are_shares(self) -> "FairnessSection":
        for tenant, weight in self.weights.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise ConfigError(
                    f"scheduler.fairness.weights.{tenant}: got {weight}, allowed: above 0, finite"
                )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SloSection:
    """What is promised. A request that cannot have it is refused while that helps others."""

    ttft_s: float | None = Field(default=None, gt=0)  # to the first token; None: no promise
    deadlines: bool = True  # nor one whose client would hang up before its first token
