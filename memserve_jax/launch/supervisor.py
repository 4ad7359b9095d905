"""Looks after the processes of a cluster: starts them, restarts those that die, ends them all.

An instance that exits with 0 meant to (it was drained, or an operator ended it) and stays away.
Any other end is a failure: it is logged at once, and the process is started again after a pause
that grows with every failure in a row. Too many in a row end the cluster.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from memserve_jax.core.errors import MemServeError
from memserve_jax.launch.child import Child, ChildCommand, ChildFailedError, ending

READY = "ready grpc="
LAST_WORDS_S = 5.0  # beyond the grace, for cancelled requests and copies under way

_log = logging.getLogger(__name__)


class ClusterFailedError(MemServeError):
    """A process of the cluster failed too often."""


@runtime_checkable
class Commands(Protocol):
    """What the processes of a cluster run."""

    def scheduler(self, port: int | None) -> ChildCommand:
        """Returns the scheduler's command, with `port` or (None) the configured one."""
        ...

    def instances(self, target: str) -> Sequence[ChildCommand]:
        """Returns the instances' commands, for a scheduler at `target` (HOST:PORT)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How soon, and how often, a process that failed is started again."""

    first_pause_s: float = 0.5
    longest_pause_s: float = 8.0
    stable_s: float = 30.0  # whoever served for so long starts to count afresh
    most_failures: int = 5  # in a row

    def pause_s(self, num_failures: int) -> float:
        """Returns the pause after so many failures in a row."""
        return min(self.longest_pause_s, self.first_pause_s * 2 ** (num_failures - 1))


class Supervisor:
    """A running cluster of child processes. Lives in the asyncio loop of the main thread."""

    def __init__(self, commands: Commands, policy: RestartPolicy):
        """For `launch` alone."""
        self._commands = commands
        self._policy = policy
        self._scheduler = commands.scheduler(None)
        self._children: dict[str, Child] = {}  # by name, in their present or last life
        self._keepers: list[asyncio.Task[None]] = []
        # As many at once as there are processors: more would only compile more slowly.
        self._starts = asyncio.Semaphore(len(os.sched_getaffinity(0)))
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping: asyncio.Task[None] | None = None
        self.target = ""  # HOST:PORT of the scheduler: the same in all its lives

    @classmethod
    async def launch(cls, commands: Commands, policy: RestartPolicy | None = None) -> "Supervisor":
        """Returns a cluster that serves requests.

        Args:
          commands: What to run: the scheduler first, then the instances side by side.
          policy: For processes that fail later; None: the default.

        Raises:
          ConfigError, ChildFailedError: one could not start; nothing is left running.
        """
        supervisor = cls(commands, policy or RestartPolicy())
        try:
            await supervisor._start_all()
        except BaseException:
            await asyncio.gather(*(child.kill() for child in supervisor._children.values()))
            raise
        return supervisor

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each child, in its present or last life."""
        return {name: child.pid for name, child in self._children.items()}

    async def failed(self) -> None:
        """Waits as long as all goes well.

        Raises:
          ClusterFailedError: a process has failed too often in a row.
        """
        await asyncio.shield(self._failed)

    async def stop(self, grace_s: float) -> None:
        """Gives requests `grace_s` to end, then cancels them; returns when no child is left.

        A second call meanwhile ends the draining.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(grace_s))
        else:
            for child in self._children.values():
                child.send(signal.SIGTERM)  # each child's second
        await asyncio.shield(self._stopping)

    async def _start_all(self) -> None:
        line = await self._start(self._scheduler)
        self.target = line.removeprefix(READY)
        self._scheduler = self._commands.scheduler(int(self.target.rpartition(":")[2]))
        instances = self._commands.instances(self.target)
        starts = asyncio.gather(*(self._start(command) for command in instances))
        watch = asyncio.create_task(self._children[self._scheduler.name].ended())
        try:
            await asyncio.wait((starts, watch), return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                what = f"{self._scheduler.name} {ending(watch.result())}"
                raise ChildFailedError(f"{what} before the instances were ready")
            starts.result()
        finally:
            starts.cancel()
            watch.cancel()
            await asyncio.gather(starts, watch, return_exceptions=True)
        for command in (self._scheduler, *instances):
            self._keepers.append(asyncio.create_task(self._keep(command)))

    async def _start(self, command: ChildCommand) -> str:
        """Starts a child when its turn has come; returns its ready line. Raises as `ready`."""
        async with self._starts:
            child = self._children[command.name] = await Child.start(command)
            return await child.ready()

    async def _keep(self, command: ChildCommand) -> None:
        """Starts a child again whenever it fails, until it leaves or fails for good."""
        loop = asyncio.get_running_loop()
        num_failures, ready_s = 0, loop.time()
        while True:
            child = self._children[command.name]
            status = await child.ended()
            if status == 0 and command is not self._scheduler:
                _log.info("%s (pid %d) has left", child.name, child.pid)
                return
            is_stable = loop.time() - ready_s >= self._policy.stable_s
            num_failures = 1 if is_stable else num_failures + 1
            what = f"{child.name} (pid {child.pid}) {ending(status)}"
            if num_failures >= self._policy.most_failures:
                error = ClusterFailedError(f"{what}, failure {num_failures} in a row: giving up")
                if not self._failed.done():
                    self._failed.set_exception(error)
                return
            pause_s = self._policy.pause_s(num_failures)
            _log.error("%s; starting it again in %g s", what, pause_s)
            await asyncio.sleep(pause_s)
            try:
                await self._start(command)
            except MemServeError as error:
                _log.error("%s did not start: %s", child.name, error)
            ready_s = loop.time()

    async def _stop(self, grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + grace_s
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await self._children[self._scheduler.name].end(grace_s + LAST_WORDS_S)
        # Only streams that go round the scheduler are left, and copies between instances.
        left_s = max(0.0, deadline_s - loop.time()) + LAST_WORDS_S
        await asyncio.gather(*(child.end(left_s) for child in self._children.values()))
