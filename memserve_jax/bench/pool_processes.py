"""The other side of `pool_process`: starts such processes, tells them what to do, ends them."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from memserve_jax.bench.call_link import CallLink, Respond
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.malloc import with_tunables
from memserve_jax.core.types import InstanceId

POOLS = "memserve_jax.bench.pool_process"
PATIENCE_S = 120.0  # of a command, where nothing else is said


class PoolWorker:
    """One process of ours. Any thread may make every call."""

    def __init__(self, name: str, *, module: str = POOLS, is_quiet: bool = False):
        """Starts `module` on the CPU; it logs to this process's stderr, unless `is_quiet`."""
        self.name = name
        log = subprocess.DEVNULL if is_quiet else sys.stderr
        ours, theirs = socket.socketpair()
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            env=with_tunables({**os.environ, "JAX_PLATFORMS": "cpu"}),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        theirs.close()
        self._link = CallLink(Connection(ours.detach()), _refuse)

    def start(
        self, command: str, *arguments: object, timeout_s: float = PATIENCE_S
    ) -> "Future[Any]":
        """Gives a command, a method of `PoolProcess`; the answer is what that returns."""
        return self._link.call(command, *arguments, timeout_s=timeout_s)

    def ask(self, command: str, *arguments: object, timeout_s: float = PATIENCE_S) -> Any:
        """Returns the answer to a command; raises what it raised."""
        return self.start(command, *arguments, timeout_s=timeout_s).result()

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.popen.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Returns its exit status, once it has ended; negative: the signal that ended it."""
        return self.popen.wait(timeout_s)

    def end(self) -> None:
        """Ends it, at once and whatever it does."""
        self.popen.kill()
        self.popen.wait()
        self._link.close()


@contextlib.contextmanager
def pool_workers(
    names: Sequence[str], *, module: str = POOLS, is_quiet: bool = False
) -> Iterator[tuple[PoolWorker, ...]]:
    """Yields processes, every one with jax still to be started; ends them."""
    workers: list[PoolWorker] = []
    try:
        for name in names:
            workers.append(PoolWorker(name, module=module, is_quiet=is_quiet))
        yield tuple(workers)
    finally:
        for worker in reversed(workers):  # the first coordinates a job: others would abort
            worker.end()


def introduce(
    first: PoolWorker,
    second: PoolWorker,
    instances: tuple[Sequence[InstanceId], Sequence[InstanceId]],
) -> None:
    """Connects the pools of two processes: `instances` of the first, and of the second."""
    with tempfile.TemporaryDirectory() as folder:
        address = str(pathlib.Path(folder) / "link")
        second.ask("listen", address)
        accepted = second.start("accept", tuple(instances[0]))
        first.ask("connect", address, tuple(instances[1]))
        accepted.result()


def _refuse(kind: str, arguments: tuple[Any, ...], respond: Respond) -> None:
    respond(TransferFailedError(f"{kind}: this end takes no calls"))
