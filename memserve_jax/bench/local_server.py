"""A `memserve serve` process of our own: started, waited for, and always ended."""

import contextlib
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memserve_jax.core.errors import MemServeError

READY = "ready grpc="
STOP_S = 40.0  # the server drains for up to 30 s
_NUM_LOG_LINES = 15


class ServerFailedError(MemServeError):
    """The server process ended, or said nothing, before it was ready."""


def serve_command(arguments: Sequence[str]) -> list[str]:
    """Returns the command line of `memserve serve` on a free port."""
    return [sys.executable, "-m", "memserve_jax.cli", "serve", "--port", "0", *arguments]


@contextlib.contextmanager
def local_server(
    command: Sequence[str],
    *,
    log_path: pathlib.Path,
    num_cpu_devices: int = 1,
    ready_timeout_s: float = 180.0,
) -> Iterator[str]:
    """Runs a server and yields its HOST:PORT; ends it with SIGTERM on the way out.

    Args:
      command: What `serve_command` makes.
      log_path: Gets the server's stderr; replaced.
      num_cpu_devices: CPU devices for jax to emulate at least, where it runs on the CPU.
      ready_timeout_s: How long it may take to serve.

    Raises:
      ServerFailedError: with the last lines of the log. The process is gone then.
    """
    with local_process(
        command,
        log_path=log_path,
        num_cpu_devices=num_cpu_devices,
        ready_timeout_s=ready_timeout_s,
    ) as server:
        yield server.target


@dataclass(frozen=True, slots=True)
class LocalProcess:
    """A server process that is ready."""

    target: str  # HOST:PORT
    pid: int


@contextlib.contextmanager
def local_process(
    command: Sequence[str],
    *,
    log_path: pathlib.Path,
    num_cpu_devices: int = 1,
    ready_timeout_s: float = 180.0,
) -> Iterator[LocalProcess]:
    """Runs whatever prints a ready line, and yields which process it is. As `local_server`."""
    with log_path.open("wb") as log:
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(num_cpu_devices)}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        yield LocalProcess(_wait_until_ready(process, log_path, ready_timeout_s), process.pid)
    finally:
        _stop(process)


def _wait_until_ready(
    process: subprocess.Popen[str], log_path: pathlib.Path, timeout_s: float
) -> str:
    """Returns the HOST:PORT of the ready line."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_first_line, args=(process, lines), daemon=True)
    reader.start()
    try:
        line = lines.get(timeout=timeout_s).strip()
    except queue.Empty:
        raise ServerFailedError(
            f"memserve serve: not ready within {timeout_s:g} s{_tail(log_path)}"
        ) from None
    if not line.startswith(READY):
        got = f"printed {line!r}" if line else "ended"
        raise ServerFailedError(f"memserve serve: {got} before it was ready{_tail(log_path)}")
    return line.removeprefix(READY)


def _read_first_line(process: subprocess.Popen[str], lines: "queue.SimpleQueue[str]") -> None:
    lines.put(process.stdout.readline() if process.stdout else "")


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _tail(log_path: pathlib.Path) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "".join(f"\n  {line}" for line in lines[-_NUM_LOG_LINES:])
