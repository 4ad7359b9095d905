"""One child process: its ready line, its log, its end."""

import asyncio
import collections
import contextlib
import logging
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memserve_jax.core.errors import ConfigError, MemServeError
from memserve_jax.core.telemetry_sections import LogSection
from memserve_jax.telemetry.logs import passed_on

BROKEN_OFF_S = 10.0  # what a child gets after it was told to end at once, before it is killed
LOG_TAIL_S = 1.0  # what the end of its log gets to come through
_LONGEST_LINE = 1 << 20  # bytes of a log line; a longer one is dropped
_ERROR_LINE = re.compile(r"memserve( \w+)?: (.*)")  # how every command says why it ends

_log = logging.getLogger(__name__)


class ChildFailedError(MemServeError):
    """A child ended before it was ready, for a reason that is not in the config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCommand:
    """What a child runs."""

    name: str  # in front of its log lines
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: LogSection = field(default_factory=LogSection)  # how it logs, and so do we


class Child:
    """A process of ours, alive or not. Lives in the asyncio loop of the main thread."""

    def __init__(self, command: ChildCommand, process: asyncio.subprocess.Process):
        """For `start` alone."""
        self.name = command.name
        self._process = process
        self._log = command.log
        self._reasons: collections.deque[str] = collections.deque(maxlen=1)
        self._log_pump = asyncio.create_task(self._pass_on_log())
        self._silencer: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, command: ChildCommand) -> "Child":
        """Starts a process, in a session of its own: Ctrl-C in a terminal is not for it."""
        process = await asyncio.create_subprocess_exec(
            *command.arguments,
            env=command.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,
        )
        _log.info("%s: pid %d: %s", command.name, process.pid, " ".join(command.arguments))
        return cls(command, process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ready(self) -> str:
        """Returns its line of stdout, once it has said it.

        Raises:
          ConfigError: it exited with 2, that is for a reason in config or command line.
          ChildFailedError: it ended in another way.
        """
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode(errors="replace").strip()
        if line.startswith("ready "):
            self._silencer = asyncio.create_task(_drop(self._process.stdout))
            return line
        status = await self.ended()
        reason = self._reasons[0] if self._reasons else f"{self.name} {ending(status)}"
        raise ConfigError(reason) if status == 2 else ChildFailedError(reason)

    async def ended(self) -> int:
        """Returns its exit status (below 0: the signal it died of), its log passed on."""
        status = await self._process.wait()
        await asyncio.wait((self._log_pump,), timeout=LOG_TAIL_S)
        return status

    async def end(self, grace_s: float) -> None:
        """Has it drain, then break off, then be gone; returns when it is."""
        for number, patience_s in (
            (signal.SIGTERM, grace_s),
            (signal.SIGTERM, BROKEN_OFF_S),  # a second one ends the draining
            (signal.SIGKILL, None),
        ):
            if number is signal.SIGKILL:
                _log.warning("%s (pid %d) does not end: killed", self.name, self.pid)
            self.send(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.ended()
                    return

    async def kill(self) -> None:
        """Has it gone at once; returns when it is."""
        self.send(signal.SIGKILL)
        await self.ended()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _pass_on_log(self) -> None:
        reader = self._process.stderr
        assert reader is not None
        while True:
            try:
                raw = await reader.readline()
            except ValueError:  # a line beyond the limit
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip("\n")
            found = _ERROR_LINE.fullmatch(line)
            if found:
                self._reasons.append(found[2])
            with contextlib.suppress(OSError, ValueError):  # nobody reads our log any more
                sys.stderr.write(passed_on(self.name, line, self._log) + "\n")
                sys.stderr.flush()


def ending(status: int) -> str:
    """Returns how a process ended, in words, from its exit status."""
    if status >= 0:
        return f"exited with {status}"
    try:
        return f"died of {signal.Signals(-status).name}"
    except ValueError:
        return f"died of signal {-status}"


async def _drop(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass
