"""`memserve` processes that need not import anything: forks of one that has, and has done no more.

Importing jax and the rest takes longer than all that most tests ask of a process. What comes out
is a process like any other: with an id, memory, threads, sockets and signals of its own.
"""

import atexit
import io
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["memserve_jax.cli.instance", "memserve_jax.cli.scheduler", "tests.helpers.breakpoints"]
)

Main = Callable[[Sequence[str]], object]  # given the arguments, may raise SystemExit


class Fork:
    """One process. Has what tests use of `subprocess.Popen`, and means the same by it."""

    def __init__(self, main: Main, arguments: Sequence[str], *, cwd: pathlib.Path, log: io.IOBase):
        """Starts it.

        Args:
          main: A function of a module; called in the process.
          arguments: For it.
          cwd: Where it runs.
          log: Gets its stderr.
        """
        reader, writer = _CONTEXT.Pipe(duplex=False)
        errors = Connection(os.dup(log.fileno()), readable=False)
        self._process = _CONTEXT.Process(
            target=_run,
            args=(main, tuple(arguments), str(cwd), dict(os.environ), writer, errors),
            daemon=True,  # ended with the tests at the latest
        )
        self._process.start()
        writer.close()
        errors.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def poll(self) -> int | None:
        """Returns its exit status, below 0 for a signal; None: it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Returns its exit status when it has ended."""
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Returns what is left of its stdout when it has ended."""
        self.wait(timeout)
        return self.stdout.read(), None

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it hard."""
        self.send_signal(signal.SIGKILL)


def _run(
    main: Main,
    arguments: Sequence[str],
    cwd: str,
    environment: Mapping[str, str],
    writer: Connection,
    errors: Connection,
) -> None:
    """Is the process, from its standard streams to its exit handlers."""
    for stream, number in ((writer, 1), (errors, 2)):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    try:
        main(arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
