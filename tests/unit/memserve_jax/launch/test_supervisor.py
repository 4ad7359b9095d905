"""Processes that die come back, those that leave do not, and none is left at the end."""

import asyncio
import os
import pathlib
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.launch.child import ChildCommand, ChildFailedError
from memserve_jax.launch.supervisor import ClusterFailedError, RestartPolicy, Supervisor

SERVES = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready grpc=h:1234", flush=True)
while True: signal.pause()
"""
QUICK = RestartPolicy(first_pause_s=0.01, longest_pause_s=0.02, stable_s=60.0, most_failures=3)
PATIENCE_S = 60.0


def refuses(why: str) -> str:
    return f"import sys; print('memserve instance: {why}', file=sys.stderr); exit(2)"


class Programs:
    """Children that are small programs."""

    def __init__(self, scheduler: str = SERVES, **instances: str):
        self._scheduler, self._instances = scheduler, instances
        self.ports: list[int | None] = []
        self.targets: list[str] = []

    def scheduler(self, port: int | None) -> ChildCommand:
        self.ports.append(port)
        return self._command("scheduler", self._scheduler)

    def instances(self, target: str) -> Sequence[ChildCommand]:
        self.targets.append(target)
        return [self._command(name, program) for name, program in self._instances.items()]

    def _command(self, name: str, program: str) -> ChildCommand:
        return ChildCommand(
            name=name, arguments=[sys.executable, "-c", program], environment=dict(os.environ)
        )


def is_alive(pid: int) -> bool:
    return pathlib.Path(f"/proc/{pid}").exists()


def supervised(
    programs: Programs, test: Callable[[Supervisor], Awaitable[None]], policy: RestartPolicy = QUICK
) -> None:
    async def run() -> None:
        supervisor = await Supervisor.launch(programs, policy)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await test(supervisor)
        finally:
            pids = supervisor.pids.values()
            await supervisor.stop(PATIENCE_S)
            assert not any(map(is_alive, pids))

    asyncio.run(run())


async def another_life(supervisor: Supervisor, name: str, pid: int) -> None:
    while supervisor.pids[name] == pid:
        await asyncio.sleep(0)


def test_all_are_started_and_ended():
    programs = Programs(p0=SERVES, d0=SERVES)

    async def test(supervisor: Supervisor) -> None:
        assert supervisor.target == "h:1234"
        assert list(supervisor.pids) == ["scheduler", "p0", "d0"]
        assert all(map(is_alive, supervisor.pids.values()))

    supervised(programs, test)
    assert programs.ports == [None, 1234]  # it comes back on the port that it found
    assert programs.targets == ["h:1234"]


@pytest.mark.parametrize("name", ["scheduler", "d0"])
def test_one_that_dies_is_started_again(name: str, caplog: pytest.LogCaptureFixture):
    async def test(supervisor: Supervisor) -> None:
        pid = supervisor.pids[name]
        os.kill(pid, signal.SIGKILL)
        await another_life(supervisor, name, pid)

    supervised(Programs(d0=SERVES), test)
    assert f"{name} (pid" in caplog.text
    assert "died of SIGKILL; starting it again in 0.01 s" in caplog.text


def test_an_instance_that_leaves_stays_away(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")

    async def test(supervisor: Supervisor) -> None:
        os.kill(supervisor.pids["d0"], signal.SIGTERM)
        while "has left" not in caplog.text:
            await asyncio.sleep(0)

    supervised(Programs(d0=SERVES), test)
    assert "starting it again" not in caplog.text


def test_too_many_failures_in_a_row_end_the_cluster():
    async def test(supervisor: Supervisor) -> None:
        with pytest.raises(ClusterFailedError, match=r"d0 \(pid .* failure 3 in a row"):
            for _ in range(QUICK.most_failures):
                pid = supervisor.pids["d0"]
                os.kill(pid, signal.SIGKILL)
                dies = asyncio.create_task(another_life(supervisor, "d0", pid))
                fails = asyncio.create_task(supervisor.failed())
                await asyncio.wait((dies, fails), return_when=asyncio.FIRST_COMPLETED)
                dies.cancel()
                if fails.done():
                    fails.result()
                fails.cancel()

    supervised(Programs(d0=SERVES), test)


def test_one_that_served_for_long_counts_afresh():
    policy = RestartPolicy(first_pause_s=0.01, stable_s=0.0, most_failures=2)

    async def test(supervisor: Supervisor) -> None:
        for _ in range(4):
            pid = supervisor.pids["d0"]
            os.kill(pid, signal.SIGKILL)
            await another_life(supervisor, "d0", pid)

    supervised(Programs(d0=SERVES), test, policy)


@pytest.mark.parametrize(
    ("programs", "error", "message"),
    [
        (Programs(refuses("port: 1 is in use")), ConfigError, "port: 1 is in use"),
        (Programs(p0=SERVES, d0=refuses("too big")), ConfigError, "too big"),
        (Programs(p0=SERVES, d0="exit(3)"), ChildFailedError, "d0 exited with 3"),
        (
            Programs("print('ready grpc=h:1')", p0="import signal; signal.pause()"),
            ChildFailedError,
            "scheduler exited with 0 before the instances were ready",
        ),
    ],
)
def test_a_start_that_fails_leaves_nothing(
    programs: Programs, error: type[Exception], message: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    with pytest.raises(error) as caught:
        asyncio.run(Supervisor.launch(programs, QUICK))
    assert str(caught.value) == message
    started = [record.args for record in caplog.records if "pid" in record.msg]
    assert started
    assert not any(is_alive(pid) for _, pid, *_ in started)  # type: ignore[misc]


def test_a_second_stop_ends_the_draining(tmp_path: pathlib.Path):
    told = tmp_path / "told"
    drains = f"""
import pathlib, signal, sys
told = pathlib.Path({str(told)!r})
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0) if told.exists() else told.touch())
print("ready grpc=h:1234", flush=True)
while True: signal.pause()
"""

    async def test(supervisor: Supervisor) -> None:
        draining = asyncio.create_task(supervisor.stop(PATIENCE_S))
        while not told.exists():
            await asyncio.sleep(0)
        await supervisor.stop(0.0)
        await draining

    supervised(Programs(drains, d0=SERVES), test)


def test_pauses_grow_up_to_a_limit():
    policy = RestartPolicy(first_pause_s=0.5, longest_pause_s=8.0)
    assert [policy.pause_s(count) for count in (1, 2, 3, 5, 9)] == [0.5, 1.0, 2.0, 8.0, 8.0]
