import os
import sys

import pytest

from memserve_jax.bench.local_server import ServerFailedError, local_server, serve_command

SERVER = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("drained", file=sys.stderr), sys.exit(0)))
print("pid", os.getpid(), file=sys.stderr, flush=True)
print("ready grpc=127.0.0.1:4711", flush=True)
signal.pause()
"""


def python(program):
    return [sys.executable, "-c", program]


def test_a_server_is_waited_for_and_ended(tmp_path):
    log = tmp_path / "log"
    with local_server(python(SERVER), log_path=log) as target:
        assert target == "127.0.0.1:4711"
        pid = int(log.read_text().split()[1])
        os.kill(pid, 0)  # it runs
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "drained" in log.read_text()


def test_a_server_is_ended_if_its_user_fails(tmp_path):
    log = tmp_path / "log"
    with (
        pytest.raises(ZeroDivisionError),
        local_server(python(SERVER), log_path=log),
    ):
        raise ZeroDivisionError
    assert "drained" in log.read_text()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('no such topology')", r"ended before it was ready\n  no such top"),
        ("print('hello')", r"printed 'hello' before it was ready"),
    ],
)
def test_a_server_that_fails_says_why(tmp_path, program, message):
    with (
        pytest.raises(ServerFailedError, match=message),
        local_server(python(program), log_path=tmp_path / "log"),
    ):
        pass


def test_a_silent_server_is_given_up(tmp_path):
    program = "import signal; signal.pause()"
    with (
        pytest.raises(ServerFailedError, match=r"not ready within 0.05 s"),
        local_server(python(program), log_path=tmp_path / "log", ready_timeout_s=0.05),
    ):
        pass


def test_the_command_is_ours():
    command = serve_command(["--topology", "2c"])
    assert command[1:] == [
        "-m", "memserve_jax.cli", "serve", "--port", "0", "--topology", "2c",
    ]  # fmt: skip


def test_a_server_is_told_how_many_devices_to_emulate(tmp_path):
    program = "import os; print('ready grpc=' + os.environ['JAX_NUM_CPU_DEVICES'], flush=True)"
    with local_server(python(program), log_path=tmp_path / "log", num_cpu_devices=4) as target:
        assert target == "4"
