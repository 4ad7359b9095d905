"""The part of the `scheduler` section that says when an instance goes from one role to another."""

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PlannerSection:
    """The planner: it moves instances between prefill and decode, one at a time.

    A side is short while a newcomer would wait there for too long; the other one idles where
    those that stay would be little used.
    """

    enabled: bool = False
    prefill_wait_s: float | None = Field(default=None, gt=0)  # None: half of slo.ttft_s, or
    # queue.instance_s where nothing is promised
    decode_wait_s: float = Field(default=1.0, gt=0)  # from the first token to the second
    idle_usage: float = Field(default=0.5, gt=0, lt=1)  # at most, of those that would stay
    window_s: float = Field(default=5.0, gt=0)  # over which waits and usage are averaged
    hold_s: float = Field(default=10.0, ge=0)  # that a shortage has to last
    pause_s: float = Field(default=60.0, ge=0)  # from the end of one move to the next
    drain_s: float = Field(default=300.0, gt=0)  # for the requests of the one that moves
