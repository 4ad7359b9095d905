"""One live instance: what never changes in its life, and how it is."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.types import CachingMode, InstanceId, Role, Tier
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.roles import parse_caching, parse_role
from scheduler.allowance import Allowance

SERVING, DRAINING, DOWN = "serving", "draining", "down"  # `state` of an InstanceStatus

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
TARGET = re.compile(r"\S+:\d{1,5}")  # HOST:PORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What never changes in one life of an instance, checked."""

    instance: InstanceId
    epoch: int
    role: Role
    caching: CachingMode
    target: str  # HOST:PORT
    model: str
    block_size_tokens: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an instance can hold of one request; None: it has not said, or there is no limit."""

    context_tokens: int | None
    kv_tokens: int | None  # in HBM

    @classmethod
    def least_of(cls, capacities: "Iterable[Capacity]") -> "Capacity":
        """Returns what each of some instances can hold."""
        known = list(capacities)
        contexts = [each.context_tokens for each in known if each.context_tokens is not None]
        pools = [each.kv_tokens for each in known if each.kv_tokens is not None]
        return cls(min(contexts, default=None), min(pools, default=None))


MAX_LIVES = 20  # of one name at once, then so many a second: each one ends requests
LIVES_PER_S = 1.0


def _nobody() -> None:
    """Is told where nobody wants to know."""


class Member:
    """One live instance."""

    __slots__ = (
        "_is_draining",
        "_is_suspect",
        "_on_change",
        "_status",
        "capacity",
        "heard_s",
        "lives",
        "traits",
    )

    def __init__(
        self,
        *,
        traits: Traits,
        status: pb.InstanceStatus,
        heard_s: float,
        on_change: Callable[[], None] = _nobody,
        lives: Allowance | None = None,
    ):
        """Takes its first status; `on_change` is called when state or capacity is another.

        `lives` is what an earlier life of the name has left of its restarts.
        """
        self.traits = traits
        self.lives = lives or Allowance(burst=MAX_LIVES, per_s=LIVES_PER_S, now_s=heard_s)
        self.capacity = self._capacity_of(status)
        self.heard_s = heard_s
        self._status = status
        self._is_draining = False
        self._is_suspect = False
        self._on_change = on_change

    @property
    def status(self) -> pb.InstanceStatus:
        """As last reported."""
        return self._status

    @status.setter
    def status(self, status: pb.InstanceStatus) -> None:
        before = self._status.state, self.capacity
        self._status, self.capacity = status, self._capacity_of(status)
        if before != (status.state, self.capacity):
            self._on_change()

    @property
    def is_draining(self) -> bool:
        """Whether we ordered it to; an instance may also say so itself."""
        return self._is_draining

    @is_draining.setter
    def is_draining(self, is_draining: bool) -> None:
        self._is_draining = is_draining
        self._on_change()

    @property
    def is_suspect(self) -> bool:
        """Whether it could not be reached; its next heartbeat clears it."""
        return self._is_suspect

    @is_suspect.setter
    def is_suspect(self, is_suspect: bool) -> None:
        if is_suspect != self._is_suspect:
            self._is_suspect = is_suspect
            self._on_change()

    @property
    def state(self) -> str:
        """What the instance is: serving, draining or down."""
        if self._is_suspect:
            return DOWN
        return DRAINING if self._is_draining else self._status.state

    @property
    def is_routable(self) -> bool:
        """Whether new requests may go there."""
        return self.state == SERVING

    def _capacity_of(self, status: pb.InstanceStatus) -> Capacity:
        blocks = [tier.num_blocks for tier in status.tiers if tier.tier == Tier.HBM]
        sizes = [count * self.traits.block_size_tokens for count in blocks if count]
        return Capacity(status.max_context_tokens or None, min(sizes, default=None))


def traits_of(status: pb.InstanceStatus) -> Traits:
    """Returns the traits in `status`.

    Raises:
      InvalidRequestError: a field is absent or impossible.
    """
    role = parse_role(status.role, field="status.role")
    caching = parse_caching(status.caching, role, field="status.caching")
    checks = (
        ("instance", _NAME.fullmatch(status.instance), "1 to 64 of A-Z a-z 0-9 . _ -"),
        ("target", TARGET.fullmatch(status.target), "HOST:PORT"),
        ("epoch", status.epoch > 0, "> 0"),
        ("block_size_tokens", 0 < status.block_size_tokens <= 256, "1 to 256"),
    )
    for field, holds, allowed in checks:
        if not holds:
            raise InvalidRequestError(f"status.{field}", getattr(status, field), allowed)
    return Traits(
        instance=InstanceId(status.instance),
        epoch=status.epoch,
        role=role,
        caching=caching,
        target=status.target,
        model=status.model,
        block_size_tokens=status.block_size_tokens,
    )
