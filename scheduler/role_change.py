"""Takes an instance out of routing while it ends what it has, and gives it another role."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from memserve_jax.core.errors import RefusedError
from memserve_jax.core.types import InstanceId
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import checked_seconds
from memserve_jax.proto.roles import parse_role
from scheduler.member import Member
from scheduler.state import State

DEFAULT_DRAIN_S = 300.0
CHANGE_TIMEOUT_S = 600.0  # for the new engine, which may have much to compile

_log = logging.getLogger(__name__)


async def stand_down(state: State, member: Member, timeout_s: float) -> float:
    """Waits until no request of ours counts at an instance that draining has taken out.

    Our requests on the way to it must arrive before it stops taking any.

    Returns:
      The seconds left of `timeout_s`, at least 1: after them its own time-out decides.
    """
    loop, instance = asyncio.get_running_loop(), member.traits.instance
    started_s = loop.time()
    try:
        async with asyncio.timeout(timeout_s):
            await state.flights.when_idle(instance)
    except TimeoutError:
        _log.warning("%s still has requests after %.1f s", instance, timeout_s)
    return max(1.0, timeout_s - (loop.time() - started_s))


class RoleChanges:
    """Changes roles of instances, one at a time each. Lives in the asyncio loop."""

    def __init__(self, state: State, on_change: Callable[[], Awaitable[None]]):
        """Changes nothing yet.

        Args:
          state: Who is there.
          on_change: Awaited after who is routable may have changed.
        """
        self._state = state
        self._on_change = on_change
        self._under_way: set[InstanceId] = set()

    @property
    def is_under_way(self) -> bool:
        """Whether some instance is between two roles."""
        return bool(self._under_way)

    async def change(self, request: pb.SetRoleRequest) -> pb.SetRoleReply:
        """Has an instance finish what it has, and returns once it serves in its new role.

        Raises:
          InvalidRequestError: no such role, a caching mode that does not fit it, or no time-out.
          UnknownInstanceError: no such instance.
          RefusedError: it is the last of its role, does not fit the others, or is on its way out.
          grpc.aio.AioRpcError: what the instance says; it goes on as before if it can.
        """
        cluster = self._state.cluster
        role = parse_role(request.role)
        timeout_s = checked_seconds("timeout_s", request.timeout_s) or DEFAULT_DRAIN_S
        member = cluster.member(request.instance)
        traits = cluster.recast(member, role, request.caching)
        instance = traits.instance
        if (traits.role, traits.caching) == (member.traits.role, member.traits.caching):
            return _reply(member)
        if instance in self._under_way or not member.is_routable:
            raise RefusedError(f"instance: {instance} is {member.state}, allowed: one that serves")
        if not request.force and role is not member.traits.role:
            cluster.refuse_unless_spare(instance)
        self._under_way.add(instance)
        member.is_draining = True
        try:
            await self._on_change()
            left_s = await stand_down(self._state, member, timeout_s)
            line = self._state.channels.to(member.traits.target)
            reply = await line.instance.SetRole(
                pb.SetRoleRequest(role=role, caching=traits.caching, timeout_s=left_s),
                timeout=left_s + CHANGE_TIMEOUT_S,
            )
            _log.info("%s is a %s instance now", instance, reply.role)
            return reply
        finally:
            self._under_way.discard(instance)
            member.is_draining = False  # of an earlier life, if it has a new one
            await self._on_change()


def _reply(member: Member) -> pb.SetRoleReply:
    traits = member.traits
    return pb.SetRoleReply(
        instance=traits.instance, role=traits.role, caching=traits.caching, epoch=traits.epoch
    )
