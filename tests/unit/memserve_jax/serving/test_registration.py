"""Standing with schedulers: register, heartbeats, and what happens when one forgets us."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.kv_events import KVEvent, KVSnapshot
from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import (
    ControlServiceServicer,
    add_ControlServiceServicer_to_server,
)
from memserve_jax.proto.server import bind, make_server
from memserve_jax.serving.kv_reports import KVLog, KVReport
from memserve_jax.serving.registration import Registration, parse_members


class FakeControl(ControlServiceServicer):
    """A scheduler that notes who speaks, and forgets everybody when told."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        self.knows = False
        self.members = ["c0@5"]
        self.is_complete = True
        self.wants_kv_events = False
        self.kv_refusals = 0  # how many updates to refuse
        self.updates: asyncio.Queue[pb.KvUpdate] = asyncio.Queue()
        self.refusal: tuple[grpc.StatusCode, str] | None = None

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterReply:
        if self.refusal is not None:
            await context.abort(*self.refusal)
        self.knows = True
        self.heard.put_nowait(f"register {request.status.instance}@{request.status.epoch}")
        return pb.RegisterReply(heartbeat_s=0.001, wants_kv_events=self.wants_kv_events)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatReply:
        if not self.knows:
            await context.abort(grpc.StatusCode.NOT_FOUND, "who are you")
        self.heard.put_nowait("heartbeat")
        if request.HasField("kv"):
            self.updates.put_nowait(request.kv)
            if self.kv_refusals:
                self.kv_refusals -= 1
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "kv.events: no")
        return pb.HeartbeatReply(members=self.members, is_complete=self.is_complete)

    async def Deregister(self, request: pb.DeregisterRequest, context: Any) -> pb.DeregisterReply:
        self.heard.put_nowait(f"deregister {request.instance}@{request.epoch}")
        return pb.DeregisterReply()

    async def hear(self, wanted: str) -> None:
        async with asyncio.timeout(30):
            while await self.heard.get() != wanted:
                pass


def with_schedulers(
    count: int, test: Callable[[list[FakeControl], list[str]], Awaitable[None]]
) -> None:
    async def run() -> None:
        controls, targets, servers = [], [], []
        for _ in range(count):
            control, server = FakeControl(), make_server()
            add_ControlServiceServicer_to_server(control, server)
            targets.append(f"127.0.0.1:{bind(server, '127.0.0.1', 0)}")
            await server.start()
            controls.append(control)
            servers.append(server)
        try:
            await test(controls, targets)
        finally:
            for server in servers:
                await server.stop(None)

    asyncio.run(run())


def registration(
    targets: list[str], told: Callable[[Mapping[InstanceId, int]], None] = lambda live: None
) -> Registration:
    log = KVLog()

    async def snapshot() -> KVSnapshot:
        return KVSnapshot(log.next_event, (KVEvent(Tier.HBM, stored=bytes(16)),))

    return Registration(
        targets,
        status=lambda: pb.InstanceStatus(instance="c0", epoch=5),
        kv_report=lambda: KVReport(log, snapshot),
        peers_changed=told,
    )


def test_members_may_have_an_at_sign_in_their_name_never_in_their_epoch():
    assert parse_members(["c0@17", "a@b@3"]) == {"c0": 17, "a@b": 3}


def test_registers_beats_and_leaves():
    async def test(controls: list[FakeControl], targets: list[str]) -> None:
        subject = registration(targets)
        subject.start()
        await subject.registered()
        await controls[0].hear("register c0@5")
        await controls[0].hear("heartbeat")
        await controls[0].hear("heartbeat")
        await subject.stop()
        await controls[0].hear("deregister c0@5")

    with_schedulers(1, test)


def test_registers_again_with_a_scheduler_that_forgot():
    async def test(controls: list[FakeControl], targets: list[str]) -> None:
        subject = registration(targets)
        subject.start()
        await controls[0].hear("heartbeat")
        controls[0].knows = False
        await controls[0].hear("register c0@5")
        await controls[0].hear("heartbeat")
        await subject.stop()

    with_schedulers(1, test)


def test_tells_the_members_of_all_schedulers_when_they_change():
    async def test(controls: list[FakeControl], targets: list[str]) -> None:
        told: asyncio.Queue[Mapping[InstanceId, int]] = asyncio.Queue()
        controls[0].members, controls[1].members = ["c0@5", "d0@1"], ["c0@5", "d0@2"]
        subject = registration(targets, told.put_nowait)
        subject.start()
        async with asyncio.timeout(30):
            while await told.get() != {"c0": 5, "d0": 2}:
                pass
            controls[0].members = controls[1].members = ["c0@5"]
            while await told.get() != {"c0": 5}:
                pass
        await subject.stop()

    with_schedulers(2, test)


def test_a_scheduler_that_is_not_there_yet_is_waited_for():
    async def test(controls: list[FakeControl], targets: list[str]) -> None:
        controls[0].refusal = (grpc.StatusCode.UNAVAILABLE, "starting")
        subject = registration(targets)
        subject.start()
        waiting = asyncio.create_task(subject.registered())
        await asyncio.sleep(0)
        assert not waiting.done()
        controls[0].refusal = None
        async with asyncio.timeout(30):
            await waiting
        await subject.stop()

    with_schedulers(1, test)


def test_a_refusal_is_an_error():
    async def test(controls: list[FakeControl], targets: list[str]) -> None:
        controls[0].refusal = (grpc.StatusCode.FAILED_PRECONDITION, "block_size_tokens: got 8")
        subject = registration(targets)
        subject.start()
        with pytest.raises(ConfigError, match="block_size_tokens: got 8"):
            await subject.registered()
        await subject.stop()
        assert controls[0].heard.empty()

    with_schedulers(1, test)


def test_a_scheduler_that_has_just_started_declares_nobody_dead():
    async def test(controls: list[FakeControl], targets: list[str]) -> None:
        told: asyncio.Queue[Mapping[InstanceId, int]] = asyncio.Queue()
        controls[0].members = ["c0@5", "d0@1"]
        subject = registration(targets, told.put_nowait)
        subject.start()
        async with asyncio.timeout(30):
            assert await told.get() == {"c0": 5, "d0": 1}
            controls[0].is_complete = False  # a new life, in which only c0 has reported yet
            controls[0].members = ["c0@6"]
            assert await told.get() == {"c0": 6, "d0": 1}
            controls[0].is_complete = True
            assert await told.get() == {"c0": 6}
        await subject.stop()

    with_schedulers(1, test)


def test_a_scheduler_that_wants_events_is_told_all_and_one_that_does_not_nothing():
    async def test(controls: list[FakeControl], targets: list[str]) -> None:
        controls[0].wants_kv_events = True
        subject = registration(targets)
        subject.start()
        async with asyncio.timeout(30):
            update = await controls[0].updates.get()
            assert update.snapshot_part == 0 and update.is_last_part
            assert update.events[0].stored == bytes(16)
            controls[0].knows = False  # it restarts
            assert await controls[0].updates.get() == update
        await controls[1].hear("heartbeat")
        await controls[1].hear("heartbeat")
        assert controls[0].updates.empty() and controls[1].updates.empty()
        await subject.stop()

    with_schedulers(2, test)


def test_a_refused_update_is_followed_by_another_snapshot_and_heartbeats_go_on():
    async def test(controls: list[FakeControl], targets: list[str]) -> None:
        controls[0].wants_kv_events, controls[0].kv_refusals = True, 1
        subject = registration(targets)
        subject.start()
        async with asyncio.timeout(30):
            refused = await controls[0].updates.get()
            assert await controls[0].updates.get() == refused
        await controls[0].hear("heartbeat")
        assert controls[0].knows, "it did not register again"
        await subject.stop()

    with_schedulers(1, test)
