"""Keeps the schedulers informed: register, heartbeats, register again, deregister.

A scheduler's state is soft: one that restarts forgets its instances, answers a heartbeat with
NOT_FOUND, and is told again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

import grpc
import grpc.aio

from memserve_jax.core.credentials import PLAIN, Credentials
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.types import InstanceId
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import ControlServiceStub
from memserve_jax.proto.server import open_channel
from memserve_jax.serving.kv_reports import KVReport

CALL_TIMEOUT_S = 5.0
RETRY_S = 0.2  # after a scheduler could not be reached
_REFUSALS = (  # a scheduler that means no, not later
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
)

_log = logging.getLogger(__name__)


def parse_members(members: Sequence[str]) -> dict[InstanceId, int]:
    """Returns instance -> epoch from the `NAME@EPOCH` of a heartbeat's answer."""
    pairs = (member.rpartition("@") for member in members)
    return {InstanceId(name): int(epoch) for name, _, epoch in pairs}


class Registration:
    """One instance's standing with every scheduler. Lives in the asyncio loop."""

    def __init__(
        self,
        schedulers: Sequence[str],
        *,
        status: Callable[[], pb.InstanceStatus],
        kv_report: Callable[[], KVReport],
        peers_changed: Callable[[Mapping[InstanceId, int]], None],
        credentials: Credentials = PLAIN,
    ):
        """Makes it; `start` starts it.

        Args:
          schedulers: HOST:PORT of each.
          status: The instance as it is now.
          kv_report: Makes what tells one scheduler of the cache.
          peers_changed: Told the live instances of all schedulers together, with their epochs,
            whenever one joins, leaves or restarts.
          credentials: Of this process.

        Raises:
          ConfigError: a scheduler that may not be called in plain text.
        """
        self._status = status
        self._peers_changed = peers_changed
        self._channels = {target: open_channel(target, credentials) for target in schedulers}
        self._reports = {target: kv_report() for target in schedulers}
        self._members: dict[str, dict[InstanceId, int]] = {}  # by scheduler
        self._live: dict[InstanceId, int] = {}
        self._registered: dict[str, asyncio.Future[None]] = {}  # done at the first answer
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts one task a scheduler."""
        for target in self._channels:
            self._registered[target] = asyncio.get_running_loop().create_future()
            self._tasks.append(asyncio.create_task(self._stay_registered(target)))

    async def registered(self) -> None:
        """Returns once every scheduler has answered.

        Raises:
          ConfigError: one does not want this instance.
        """
        await asyncio.gather(*self._registered.values())

    def forsake(self) -> None:
        """Ends the heartbeats and says nothing."""
        for task in self._tasks:
            task.cancel()
        for report in self._reports.values():
            report.close()

    async def stop(self) -> None:
        """Ends the heartbeats, deregisters where a scheduler answers, closes the channels."""
        self.forsake()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        channels, self._channels = self._channels, {}
        await asyncio.gather(
            *(self._deregister(target, channel) for target, channel in channels.items())
        )

    async def beat(self) -> None:
        """Sends every scheduler the state as it is now, without waiting for the next beat."""
        for target in list(self._channels):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._heartbeat(target)

    async def renew(self) -> None:
        """Registers with every scheduler that answers, now: this is another life.

        The others hear of it with the next heartbeat.
        """
        for target in list(self._channels):
            try:
                await self._register(target)
            except grpc.aio.AioRpcError as error:
                _log.warning("scheduler %s: %s", target, error.details())
        self._peers_changed(self._live)

    async def _stay_registered(self, target: str) -> None:
        heartbeat_s: float | None = None  # None: not registered
        reachable = True
        report = self._reports[target]
        while True:
            try:
                if heartbeat_s is None:
                    heartbeat_s = await self._register(target)
                await self._heartbeat(target, report)
                reachable = True
                if not report.has_more:
                    await asyncio.sleep(heartbeat_s)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    heartbeat_s = None
                elif error.code() in _REFUSALS and not self._registered[target].done():
                    refusal = ConfigError(f"scheduler {target}: {error.details()}")
                    self._registered[target].set_exception(refusal)
                    return
                elif reachable:
                    _log.warning("scheduler %s: %s", target, error.details())
                reachable = False
                await asyncio.sleep(RETRY_S)

    async def _register(self, target: str) -> float:
        message = pb.RegisterRequest(status=self._status())
        reply = await self._stub(target).Register(message, timeout=CALL_TIMEOUT_S)
        if not self._registered[target].done():
            self._registered[target].set_result(None)
        self._reports[target].begin(is_wanted=reply.wants_kv_events)
        _log.info("registered with scheduler %s", target)
        return reply.heartbeat_s

    async def _heartbeat(self, target: str, report: KVReport | None = None) -> None:
        """Sends a heartbeat, with what there is to `report`, and hears who lives."""
        update = None if report is None else report.update()
        message = pb.HeartbeatRequest(status=self._status(), kv=update)
        try:
            reply = await self._stub(target).Heartbeat(message, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if report is not None and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                report.refused(f"scheduler {target}: {error.details()}")
            raise
        if report is not None:
            report.accepted(update, reply)
        members = parse_members(reply.members)
        if not reply.is_complete:  # it has just started: whom it does not name may live
            members = {**self._members.get(target, {}), **members}
        self._members[target] = members
        live: dict[InstanceId, int] = {}
        for members in self._members.values():
            for instance, epoch in members.items():
                live[instance] = max(epoch, live.get(instance, 0))
        if live != self._live:
            self._live = live
            self._peers_changed(live)

    async def _deregister(self, target: str, channel: grpc.aio.Channel) -> None:
        answered = self._registered.get(target)
        status = self._status()
        message = pb.DeregisterRequest(instance=status.instance, epoch=status.epoch)
        try:
            if answered is not None and answered.done() and answered.exception() is None:
                await ControlServiceStub(channel).Deregister(message, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            _log.debug("scheduler %s: cannot deregister: %s", target, error.details())
        finally:
            await channel.close()

    def _stub(self, target: str) -> ControlServiceStub:
        return ControlServiceStub(self._channels[target])  # pyright: ignore[reportArgumentType]
