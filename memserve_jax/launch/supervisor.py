"""Looks after the processes of a cluster: starts them, restarts those that die, ends them all.

An instance that exits with 0 meant to (it was drained, or an operator ended it) and stays away.
Any other end is a failure: it is logged at once, and the process is started again after a pause
that grows with every failure in a row. Too many in a row end the cluster.

The processes of a job are one unit (a `Team`): when one ends, the others, which could not go on
for long, are killed, and all but those that have left are started again.
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
from memserve_jax.launch.team import Team

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

    def teams(self, target: str) -> Sequence[Team]:
        """Returns the instances, for a scheduler at `target` (HOST:PORT)."""
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
        scheduler = Team(
            names=(self._scheduler.name,), commands=lambda _: [self._scheduler], may_leave=False
        )
        (line,) = await self._start(scheduler, scheduler.names)
        self.target = line.removeprefix(READY)
        self._scheduler = self._commands.scheduler(int(self.target.rpartition(":")[2]))
        teams = self._commands.teams(self.target)
        starts = asyncio.gather(*(self._start(team, team.names) for team in teams))
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
        for team in (scheduler, *teams):
            self._keepers.append(asyncio.create_task(self._keep(team)))

    async def _start(self, team: Team, names: Sequence[str]) -> list[str]:
        """Starts those of a team; returns their ready lines. Raises as `ready`, all ended then."""
        commands = team.commands(names)
        if len(commands) == 1:
            async with self._starts:
                return await self._start_together(commands)
        return await self._start_together(commands)  # they wait for each other: no turns

    async def _start_together(self, commands: Sequence[ChildCommand]) -> list[str]:
        for command in commands:
            self._children[command.name] = await Child.start(command)
        children = [self._children[command.name] for command in commands]
        try:
            return await asyncio.gather(*(child.ready() for child in children))
        except MemServeError:
            await asyncio.gather(*(child.kill() for child in children))
            raise

    async def _keep(self, team: Team) -> None:
        """Starts a team again whenever it fails, until all have left or it fails for good."""
        loop = asyncio.get_running_loop()
        names, num_failures, ready_s = team.names, 0, loop.time()
        while True:
            first = await self._first_to_end(names)
            statuses = await self._end_team(names)
            left = [name for name in names if statuses[name] == 0 and team.may_leave]
            for name in left:
                _log.info("%s (pid %d) has left", name, self._children[name].pid)
            names = tuple(name for name in names if name not in left)
            if not names:
                return
            what = f"{first.name} (pid {first.pid}) {ending(statuses[first.name])}"
            if first.name not in left:
                is_stable = loop.time() - ready_s >= self._policy.stable_s
                num_failures = 1 if is_stable else num_failures + 1
            if num_failures >= self._policy.most_failures:
                error = ClusterFailedError(f"{what}, failure {num_failures} in a row: giving up")
                if not self._failed.done():
                    self._failed.set_exception(error)
                return
            pause_s = self._policy.pause_s(max(1, num_failures))
            whom = "it" if names == (first.name,) else ", ".join(names)
            _log.error("%s; starting %s again in %g s", what, whom, pause_s)
            await asyncio.sleep(pause_s)
            try:
                await self._start(team, names)
            except MemServeError as error:
                _log.error("%s did not start: %s", ", ".join(names), error)
            ready_s = loop.time()

    async def _first_to_end(self, names: Sequence[str]) -> Child:
        """Returns the first child that has ended; of several, one that was not killed."""
        ends = {asyncio.create_task(self._children[name].ended()): name for name in names}
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        first = max(done, key=lambda end: end.result() != -signal.SIGKILL)
        return self._children[ends[first]]

    async def _end_team(self, names: Sequence[str]) -> dict[str, int]:
        """Kills what is left of a team; returns every exit status."""
        children = [self._children[name] for name in names]
        await asyncio.gather(*(child.kill() for child in children))
        return {child.name: await child.ended() for child in children}

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
