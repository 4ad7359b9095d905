"""The instances that are there: registration, heartbeats, epochs, drain, what they are able to.

All of it is soft: a scheduler that restarts is told again by the instances.
"""

import dataclasses
import enum
from collections.abc import Callable

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import OverloadedError, RefusedError, UnknownInstanceError
from memserve_jax.core.types import CachingMode, InstanceId, Role
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import Limits
from memserve_jax.proto.roles import parse_caching
from scheduler.member import Capacity, Member, Traits, traits_of
from scheduler.roster import Place, Roster, make_roster
from scheduler.status_checks import check_status


class Departure(enum.StrEnum):
    """Why one life of an instance is over."""

    LEFT = "it left"  # nothing it had is unfinished
    RESTARTED = "it restarted"
    RECAST = "it has another role now"
    SILENT = "its heartbeats stopped"


class Cluster:
    """The live instances. Lives in the asyncio loop."""

    def __init__(
        self,
        *,
        model: str,
        clock: Clock,
        timeout_s: float,
        on_left: Callable[[Traits, Departure], None],
        max_members: int = 4096,
    ):
        """Starts empty.

        Args:
          model: What every instance must serve: requests are tokenised for it.
          clock: Of the heartbeats.
          timeout_s: An instance not heard of for so long is gone.
          on_left: Told which life of which instance is over, and why.
          max_members: More are not taken in.
        """
        self._max_members = max_members
        self._model = model
        self._clock = clock
        self._timeout_s = timeout_s
        self._on_left = on_left
        self._members: dict[InstanceId, Member] = {}
        self._complete_from_s = clock.now_s() + timeout_s
        self._roster: Roster | None = None  # None: to be made anew
        self._names: list[str] | None = None
        self._capacity: Capacity | None = None

    def __len__(self) -> int:
        return len(self._members)

    @property
    def block_size_tokens(self) -> int | None:
        """The block size of all instances; None while there is none."""
        for member in self._members.values():
            return member.traits.block_size_tokens
        return None

    @property
    def is_complete(self) -> bool:
        """Whether every live instance has had the time to report since this started."""
        return self._clock.now_s() >= self._complete_from_s

    @property
    def can_serve(self) -> bool:
        """Whether there is a set of instances that a request can be routed to."""
        return self.roster.can_serve

    @property
    def roster(self) -> Roster:
        """The instances that new requests may go to; the same object until that changes."""
        if self._roster is None:
            self._roster = make_roster(
                Place(
                    instance=member.traits.instance,
                    role=member.traits.role,
                    tensor_parallelism=member.status.tensor_parallelism,
                    prefill_tokens_per_s=member.status.prefill_tokens_per_s,
                )
                for member in self._members.values()
                if member.is_routable
            )
        return self._roster

    def members(self) -> list[Member]:
        """Returns every live instance, by name."""
        return [self._members[instance] for instance in sorted(self._members)]

    def member(self, instance: str) -> Member:
        """Returns one live instance.

        Raises:
          UnknownInstanceError: there is none of that name.
        """
        member = self._members.get(InstanceId(instance))
        if member is None:
            live = ", ".join(sorted(self._members)) or "none"
            raise UnknownInstanceError(f"instance: got {instance!r}, live are: {live}")
        return member

    def lives(self, traits: Traits) -> bool:
        """Whether that life of an instance is not over."""
        member = self._members.get(traits.instance)
        return member is not None and member.traits.epoch == traits.epoch

    def limits(self, max_context_tokens: int) -> Limits:
        """Returns what every live instance can hold of one request.

        Args:
          max_context_tokens: The model's.
        """
        if self._capacity is None:
            capacities = [member.capacity for member in self._members.values()]
            self._capacity = Capacity.least_of(capacities)
        contexts = [max_context_tokens, self._capacity.context_tokens or max_context_tokens]
        return Limits(max_context_tokens=min(contexts), max_kv_tokens=self._capacity.kv_tokens)

    def examine(self, status: pb.InstanceStatus) -> Traits:
        """Returns the traits of an instance that fits those that are there. Changes nothing.

        Raises:
          InvalidRequestError: a field that no instance can have.
          RefusedError: it does not fit.
        """
        traits = traits_of(status)
        check_status(status)
        old = self._members.get(traits.instance)
        if old is not None and old.traits.epoch > traits.epoch:
            raise RefusedError(
                f"status.epoch: {traits.instance} is live with epoch {old.traits.epoch}, "
                f"got the older {traits.epoch}, allowed: a newer one, or another name"
            )
        if traits.model != self._model:
            raise RefusedError(
                f"status.model: {traits.instance} has {traits.model!r}, "
                f"allowed: {self._model!r}, as this scheduler has"
            )
        for member in self._members.values():
            if member is not old:
                _refuse_unless_alike(traits, member.traits)
        return traits

    def register(self, status: pb.InstanceStatus) -> None:
        """Takes an instance in; one of the same name and an older epoch is over.

        Raises:
          InvalidRequestError: a field that no instance can have.
          RefusedError: it does not fit those that are there; nothing changed.
          OverloadedError: there are too many, or this one restarts too often; nothing changed.
        """
        traits = self.examine(status)
        old = self._members.get(traits.instance)
        if old is not None and old.traits == traits:
            self.heartbeat(status)
            return
        self._refuse_unless_there_is_room(traits, old)
        if old is not None:
            is_recast = old.traits.role is not traits.role
            self._remove(old, Departure.RECAST if is_recast else Departure.RESTARTED)
        self._members[traits.instance] = Member(
            traits=traits,
            status=status,
            heard_s=self._clock.now_s(),
            on_change=self._changed,
            lives=old.lives if old is not None else None,
        )
        self._names = None
        self._changed()

    def heartbeat(self, status: pb.InstanceStatus) -> list[str]:
        """Notes how an instance is; returns the live ones as NAME@EPOCH.

        Raises:
          InvalidRequestError: a field that no instance can have; nothing is kept of it.
          UnknownInstanceError: it is not registered, or with another epoch: it should register.
        """
        check_status(status)
        member = self.member(status.instance)
        if member.traits.epoch != status.epoch:
            raise UnknownInstanceError(
                f"status.epoch: {status.instance} is registered with epoch "
                f"{member.traits.epoch}, got {status.epoch}"
            )
        member.status = status
        member.heard_s = self._clock.now_s()
        member.is_suspect = False
        if self._names is None:
            self._names = [f"{m.traits.instance}@{m.traits.epoch}" for m in self.members()]
        return self._names

    def holder_of(self, target: str, *, but: str) -> Member | None:
        """Returns the live instance at `target` (HOST:PORT) of another name than `but`."""
        for member in self._members.values():
            if member.traits.target == target and member.traits.instance != but:
                return member
        return None

    def supplant(self, member: Member) -> None:
        """Takes out an instance at whose address another one answers."""
        if self._members.get(member.traits.instance) is member:
            self._remove(member, Departure.SILENT)

    def deregister(self, instance: str, epoch: int) -> None:
        """Takes an instance out at its own wish; an older life's wish is ignored."""
        member = self._members.get(InstanceId(instance))
        if member is not None and member.traits.epoch == epoch:
            self._remove(member, Departure.LEFT)

    def expire(self) -> None:
        """Takes out the instances that have not been heard of for too long."""
        now_s = self._clock.now_s()
        for member in list(self._members.values()):
            if now_s - member.heard_s > self._timeout_s:
                self._remove(member, Departure.SILENT)

    def forgive(self, seconds: float) -> None:
        """Does not count the last `seconds` as silence: nobody could be heard."""
        for member in self._members.values():
            member.heard_s += seconds

    def refuse_unless_spare(self, instance: str) -> None:
        """Does nothing where others of the same role take requests.

        Raises:
          RefusedError: it is the last of its role.
          UnknownInstanceError: there is no such instance.
        """
        role = self.member(instance).traits.role
        for other in self._members.values():
            traits = other.traits
            if traits.role is role and traits.instance != instance and other.is_routable:
                return
        raise RefusedError(
            f"instance: {instance} is the last {role.value} instance that serves, "
            "allowed: another one, or force"
        )

    def recast(self, member: Member, role: Role, caching: str) -> Traits:
        """Returns what an instance would be in another role.

        Args:
          member: The instance.
          role: Its new role.
          caching: Its new caching mode; empty: that of the others that are colocated, or are
            not, as it would be; without others its own, or the default.

        Raises:
          InvalidRequestError: no such caching mode, or one that does not fit the role.
          RefusedError: it would not fit the others.
        """
        is_colocated = role is Role.COLOCATED
        others = [other.traits for other in self._members.values() if other is not member]
        if not caching:
            kin = [
                traits.caching
                for traits in (*others, member.traits)
                if (traits.role is Role.COLOCATED) == is_colocated
            ]
            default = CachingMode.ON if is_colocated else CachingMode.PD_CACHING_3
            caching = next(iter(kin), default)
        mode = parse_caching(caching, role)
        traits = dataclasses.replace(member.traits, role=role, caching=mode)
        for other in others:
            _refuse_unless_alike(traits, other)
        return traits

    def check(self) -> None:
        """Asserts that members fit each other and are filed under their names."""
        for instance, member in self._members.items():
            assert member.traits.instance == instance, "a member is under another name"
            assert member.traits.epoch == member.status.epoch, "a status of another life"
            assert member.traits.block_size_tokens == self.block_size_tokens, "unequal blocks"
        routable = {name for name, member in self._members.items() if member.is_routable}
        assert routable == self.roster.row_of.keys(), "the roster is out of date"

    def _refuse_unless_there_is_room(self, new: Traits, old: Member | None) -> None:
        if old is None and len(self._members) >= self._max_members:
            raise OverloadedError(
                f"{len(self._members)} instances are registered, allowed: {self._max_members} "
                "(scheduler.max_instances)"
            )
        if old is not None and not old.lives.take(self._clock.now_s()):
            raise OverloadedError(f"{new.instance} begins a new life too often; try again later")

    def _changed(self) -> None:
        self._roster = self._capacity = None

    def _remove(self, member: Member, departure: Departure) -> None:
        del self._members[member.traits.instance]
        self._names = None
        self._changed()
        self._on_left(member.traits, departure)


def _refuse_unless_alike(new: Traits, live: Traits) -> None:
    """Does nothing if the two can be in one cluster.

    Raises:
      RefusedError: they differ in what must be the same.
    """
    fields = ["block_size_tokens"]
    if (new.role is Role.COLOCATED) == (live.role is Role.COLOCATED):
        fields.append("caching")
    for field in fields:
        wanted, got = getattr(live, field), getattr(new, field)
        if got != wanted:
            raise RefusedError(
                f"status.{field}: {new.instance} has {got!r}, allowed: {wanted!r}, "
                f"as {live.instance} has"
            )


def as_status(member: Member) -> pb.InstanceStatus:
    """Returns the last status of `member`, with the state that this scheduler gives it."""
    status = pb.InstanceStatus()
    status.CopyFrom(member.status)
    status.state = member.state
    return status
