"""A child: its ready line, its log with its name in front, and its end."""

import asyncio
import os
import signal
import sys

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.launch import child as module
from memserve_jax.launch.child import Child, ChildCommand, ChildFailedError, ending

SERVES = "print('ready x', flush=True); import signal; signal.pause()"
DRAINS_FOR_EVER = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # one that comes early waits
print("ready x", flush=True)
signal.sigwait({signal.SIGTERM}); print("first", flush=True)
signal.sigwait({signal.SIGTERM})
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVES.replace(
    "signal.pause()", "[signal.pause() for _ in range(9)]"
)


def command(program: str) -> ChildCommand:
    return ChildCommand(
        name="p0", arguments=[sys.executable, "-c", program], environment=dict(os.environ)
    )


def test_its_log_has_its_name_in_front(capfd: pytest.CaptureFixture[str]):
    async def run() -> tuple[str, int]:
        child = await Child.start(
            command("import sys; print('ready x'); sys.stderr.write('a\\n\\xff b\\nend')")
        )
        return await child.ready(), await child.ended()

    assert asyncio.run(run()) == ("ready x", 0)
    assert [line for line in capfd.readouterr().err.splitlines() if line[:4] == "p0: "] == [
        "p0: a",
        "p0: \xff b",
        "p0: end",
    ]


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (
            "import sys; print('memserve instance: port: 1 is in use', file=sys.stderr); exit(2)",
            ConfigError,
            "port: 1 is in use",
        ),
        ("exit(1)", ChildFailedError, "p0 exited with 1"),
        ("import os; os.kill(os.getpid(), 9)", ChildFailedError, "p0 died of SIGKILL"),
        ("print('hello')", ChildFailedError, "p0 exited with 0"),
    ],
)
def test_an_end_before_it_is_ready(program: str, error: type[Exception], message: str):
    async def run() -> None:
        await (await Child.start(command(program))).ready()

    with pytest.raises(error) as caught:
        asyncio.run(run())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("program", "status"),
    [(SERVES, -signal.SIGTERM), (DRAINS_FOR_EVER, 0), (DEAF, -signal.SIGKILL)],
)
def test_it_drains_then_breaks_off_then_is_killed(
    program: str, status: int, monkeypatch: pytest.MonkeyPatch
):
    # So short that no child ends in time, whatever it does with the signal.
    monkeypatch.setattr(module, "BROKEN_OFF_S", 0.05 if program == DEAF else 60.0)

    async def run() -> int:
        child = await Child.start(command(program))
        await child.ready()
        await child.end(60.0 if program == SERVES else 0.2)
        return await child.ended()

    assert asyncio.run(run()) == status


def test_a_signal_to_one_that_is_gone_is_no_error():
    async def run() -> None:
        child = await Child.start(command(SERVES))
        await child.kill()
        await child.kill()
        await child.end(60.0)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exited with 0"), (-15, "died of SIGTERM"), (-99, "died of signal 99")],
)
def test_endings(status: int, words: str):
    assert ending(status) == words
