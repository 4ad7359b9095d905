"""Processes that die come back, those that leave do not, and none is left at the end."""

import asyncio
import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.launch.child import ChildCommand, ChildFailedError
from memserve_jax.launch.supervisor import ClusterFailedError, RestartPolicy, Supervisor
from memserve_jax.launch.team import Team, alone

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

    def __init__(self, scheduler: str = SERVES, *, is_job: bool = False, **instances: str):
        self._scheduler, self._instances, self._is_job = scheduler, instances, is_job
        self.lives: list[tuple[str, ...]] = []  # of the job: who was in it
        self.ports: list[int | None] = []
        self.targets: list[str] = []

    def scheduler(self, port: int | None) -> ChildCommand:
        self.ports.append(port)
        return self._command("scheduler", self._scheduler)

    def teams(self, target: str) -> Sequence[Team]:
        self.targets.append(target)
        if self._is_job:
            return [Team(names=tuple(self._instances), commands=self._job)]
        return [alone(self._command(name, program)) for name, program in self._instances.items()]

    def _job(self, names: Sequence[str]) -> Sequence[ChildCommand]:
        self.lives.append(tuple(names))
        return [self._command(name, self._instances[name]) for name in names]

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


def test_a_job_lives_and_dies_as_one(caplog: pytest.LogCaptureFixture):
    names = ("p0", "d0", "d1")
    programs = Programs(is_job=True, **dict.fromkeys(names, SERVES))

    async def test(supervisor: Supervisor) -> None:
        pids = supervisor.pids
        os.kill(pids["p0"], signal.SIGSTOP)
        os.kill(pids["d0"], signal.SIGABRT)
        for name in names:
            await another_life(supervisor, name, pids[name])
        assert not any(is_alive(pids[name]) for name in names)
        assert supervisor.pids["scheduler"] == pids["scheduler"]

    supervised(programs, test)
    assert programs.lives == [names, names]
    assert "died of SIGABRT; starting p0, d0, d1 again in 0.01 s" in caplog.text


def test_a_job_goes_on_without_who_has_left(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    programs = Programs(is_job=True, p0=SERVES, d0=SERVES)

    async def test(supervisor: Supervisor) -> None:
        pids = supervisor.pids
        os.kill(pids["d0"], signal.SIGTERM)
        await another_life(supervisor, "p0", pids["p0"])
        assert supervisor.pids["d0"] == pids["d0"]

    supervised(programs, test)
    assert programs.lives == [("p0", "d0"), ("p0",)]
    assert "exited with 0; starting p0 again in 0.01 s" in caplog.text


def test_a_job_that_fails_too_often_ends_the_cluster():
    async def test(supervisor: Supervisor) -> None:
        failing = asyncio.create_task(supervisor.failed())
        while not failing.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor.pids["d0"], signal.SIGKILL)
            await asyncio.sleep(0.01)
        with pytest.raises(ClusterFailedError, match="failure 3 in a row"):
            await failing

    supervised(Programs(is_job=True, p0=SERVES, d0=SERVES), test)


def test_a_job_of_which_one_cannot_start_leaves_nothing(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    waits = "import signal; signal.pause()"  # for the other one
    programs = Programs(is_job=True, p0=waits, d0=refuses("too big"))
    with pytest.raises(ConfigError, match="too big"):
        asyncio.run(Supervisor.launch(programs, QUICK))
    started = [record.args for record in caplog.records if "pid" in record.msg]
    assert len(started) == 3
    assert not any(is_alive(pid) for _, pid, *_ in started)  # type: ignore[misc]


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
