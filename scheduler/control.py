"""What instances and operators ask of the scheduler (`ControlService`)."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.errors import MemServeError, RefusedError, UnknownInstanceError
from memserve_jax.core.types import InstanceId, Request, Role
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import checked_seconds
from memserve_jax.proto.memserve_pb2_grpc import ControlServiceServicer
from memserve_jax.proto.status import status_of
from scheduler.bounded_log import BoundedLog
from scheduler.cluster import as_status
from scheduler.explanation import explain
from scheduler.member import Member
from scheduler.planning import Planner, Planning
from scheduler.role_change import DEFAULT_DRAIN_S, RoleChanges, stand_down
from scheduler.router import Router
from scheduler.state import State

DEFAULT_TIMEOUT_S = 60.0  # of a call whose client named no deadline
MAX_COMPLAINTS = 20  # lines on refusals at once, then one a second
STATUS_TIMEOUT_S = 1.0  # after that an instance's last heartbeat has to do

_log = logging.getLogger(__name__)


class Control(ControlServiceServicer):
    """`ControlService` of the scheduler.

    Attributes:
      planner: Has roles changed; None: it is off.
    """

    def __init__(
        self,
        state: State,
        router: Router,
        section: SchedulerSection,
        *,
        on_change: Callable[[], Awaitable[None]],
        prepare: Callable[[pb.GenerateRequest], Awaitable[Request]],
        metrics_target: str = "",
    ):
        """Opens nothing by itself.

        Args:
          state: What is known; this hears the instances.
          router: Counts what was routed.
          section: Says how often instances should report, and which policy is shown.
          on_change: Awaited after who is routable may have changed.
          prepare: Returns the request in a message, as the front door takes it.
          metrics_target: HOST:PORT of this scheduler's metrics; empty: there are none.
        """
        self._state = state
        self._router = router
        self._section = section
        self._on_change = on_change
        self._prepare = prepare
        self._roles = RoleChanges(state, on_change)
        self.planner: Planner | None = None
        if section.planner.enabled:
            self.planner = _make_planner(state, section, self._roles)
        self._complaints = BoundedLog(_log, state.clock, burst=MAX_COMPLAINTS)
        self._arrivals = BoundedLog(_log, state.clock, burst=section.max_instances)
        self._metrics_target = metrics_target

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterReply:
        """Takes an instance in."""
        status = request.status
        try:
            if status.target:
                self._state.credentials.check_target(status.target)
            self._state.cluster.examine(status)
            await self._make_way(status)
            self._state.cluster.register(status)
        except MemServeError as error:
            name = status.instance[:64]
            self._complaints.say(logging.WARNING, f"refused to register {name!r}: {error}")
            return await context.abort(*status_of(error))
        text = f"registered {status.instance} ({status.role}) at {status.target}"
        self._arrivals.say(logging.INFO, text)
        await self._on_change()
        return pb.RegisterReply(
            heartbeat_s=self._section.heartbeat_s, wants_kv_events=self._state.feeds.is_wanted
        )

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatReply:
        """Notes how an instance is and what it tells of its cache, and says who is alive."""
        status, cluster = request.status, self._state.cluster
        try:
            members = cluster.heartbeat(status)
        except MemServeError as error:
            if not isinstance(error, UnknownInstanceError):  # it has been away: no news
                name = status.instance[:64]
                self._complaints.say(logging.WARNING, f"refused a heartbeat of {name!r}: {error}")
            return await context.abort(*status_of(error))
        self._state.loads.heard(status)
        self._state.gate.call()
        refusal: MemServeError | None = None
        wants_snapshot = False
        try:
            traits = cluster.member(status.instance).traits
            update = request.kv if request.HasField("kv") else None
            wants_snapshot = self._state.feeds.hear(traits, status, update)
        except MemServeError as error:  # it lives all the same
            refusal = error
        await self._on_change()
        if refusal is not None:
            return await context.abort(*status_of(refusal))
        return pb.HeartbeatReply(
            members=members,
            is_complete=cluster.is_complete,
            wants_kv_snapshot=wants_snapshot,
        )

    async def _make_way(self, status: pb.InstanceStatus) -> None:
        """Takes out whoever is known at the address of a newcomer that answers there itself.

        Raises:
          RefusedError: another instance is there.
        """
        holder = self._state.cluster.holder_of(status.target, but=status.instance)
        if holder is None:
            return
        line = self._state.channels.to(status.target)
        found = pb.InstanceStatus()
        with contextlib.suppress(grpc.aio.AioRpcError):
            found = await line.instance.Status(pb.StatusRequest(), timeout=STATUS_TIMEOUT_S)
        if (found.instance, found.epoch) != (status.instance, status.epoch):
            raise RefusedError(
                f"status.target: {status.instance} says {status.target}, where "
                f"{holder.traits.instance} is, allowed: an address of its own"
            )
        self._state.cluster.supplant(holder)

    async def Deregister(self, request: pb.DeregisterRequest, context: Any) -> pb.DeregisterReply:
        """Takes an instance out."""
        del context
        self._state.cluster.deregister(request.instance, request.epoch)
        await self._on_change()
        return pb.DeregisterReply()

    async def ClusterStatus(self, request: pb.StatusRequest, context: Any) -> pb.ClusterStatusReply:
        """Asks every instance how it is, and adds what the scheduler knows."""
        del request, context
        members = self._state.cluster.members()
        statuses = await asyncio.gather(*(self._status(member) for member in members))
        caching = dict.fromkeys(str(member.traits.caching) for member in members)
        return pb.ClusterStatusReply(
            instances=statuses,
            policy=self._section.policy,
            caching=", ".join(caching),
            routed=self._router.num_routed,
            planner=None if self.planner is None else self.planner.status(),
            metrics_target=self._metrics_target,
        )

    async def Explain(self, request: pb.GenerateRequest, context: Any) -> pb.ExplainReply:
        """Says where a request would go now, and why."""
        try:
            return explain(await self._prepare(request), self._state, self._router)
        except MemServeError as error:
            return await context.abort(*status_of(error))

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainReply:
        """Stops routing to an instance, lets its requests end, then has it drain itself."""
        try:
            timeout_s = checked_seconds("timeout_s", request.timeout_s) or DEFAULT_DRAIN_S
            member = self._state.cluster.member(request.instance)
            if not request.force:
                self._state.cluster.refuse_unless_spare(request.instance)
        except MemServeError as error:
            return await context.abort(*status_of(error))
        member.is_draining = True
        await self._on_change()
        try:
            return await self._drain(member, timeout_s, request.force)
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            # It goes on, or drains all the same and then says so itself.
            member.is_draining = False
            await self._on_change()
            if isinstance(error, asyncio.CancelledError):
                raise
            return await context.abort(error.code(), f"{request.instance}: {error.details()}")

    async def SetRole(self, request: pb.SetRoleRequest, context: Any) -> pb.SetRoleReply:
        """Lets an instance's requests end, then has it serve on in another role."""
        try:
            return await self._roles.change(request)
        except MemServeError as error:
            return await context.abort(*status_of(error))
        except grpc.aio.AioRpcError as error:
            return await context.abort(error.code(), f"{request.instance}: {error.details()}")

    async def Quiesce(self, request: pb.QuiesceRequest, context: Any) -> pb.QuiesceReply:
        """Answers when no request, transfer or lease is left anywhere."""
        del request
        timeout_s = context.time_remaining() or DEFAULT_TIMEOUT_S
        try:
            async with asyncio.timeout(timeout_s):
                await self._state.flights.when_idle()
                leases = await self._quiesce_all(timeout_s)
        except TimeoutError:
            return await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"not quiet after {timeout_s:.1f} s"
            )
        except grpc.aio.AioRpcError as error:
            return await context.abort(error.code(), error.details() or "")
        return pb.QuiesceReply(leases=leases)

    async def _quiesce_all(self, timeout_s: float) -> int:
        """Returns the leases left.

        Asks twice: what one instance still sends may reach another after that one was quiet, but
        once all have been quiet nothing starts anew.
        """
        leases = 0
        for _ in range(2):
            members = self._state.cluster.members()
            lines = [self._state.channels.to(member.traits.target) for member in members]
            message = pb.QuiesceRequest()
            calls = (line.instance.Quiesce(message, timeout=timeout_s) for line in lines)
            leases = sum(reply.leases for reply in await asyncio.gather(*calls))
        return leases

    async def _status(self, member: Member) -> pb.InstanceStatus:
        line = self._state.channels.to(member.traits.target)
        try:
            status = await line.instance.Status(pb.StatusRequest(), timeout=STATUS_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return as_status(member)
        if (status.instance, status.epoch) == (member.traits.instance, member.traits.epoch):
            status.state = status.state if member.is_routable else member.state
            return status
        return as_status(member)

    async def _drain(self, member: Member, timeout_s: float, force: bool) -> pb.DrainReply:
        """Drains `member` within `timeout_s`; afterwards its own time-out decides."""
        instance = member.traits.instance
        left_s = await stand_down(self._state, member, timeout_s)
        line = self._state.channels.to(member.traits.target)
        reply = await line.instance.Drain(
            pb.DrainRequest(timeout_s=left_s, force=force), timeout=left_s + DEFAULT_TIMEOUT_S
        )
        return pb.DrainReply(instance=reply.instance or instance)


def _make_planner(state: State, section: SchedulerSection, roles: RoleChanges) -> Planner:
    drain_s = section.planner.drain_s

    def move(instance: InstanceId, role: Role) -> Awaitable[object]:
        return roles.change(pb.SetRoleRequest(instance=instance, role=role, timeout_s=drain_s))

    return Planner(Planning(state, section), move=move, is_changing=lambda: roles.is_under_way)
