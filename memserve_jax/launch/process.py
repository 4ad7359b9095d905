"""The life of a server process: start, one line when ready, signals, a gentle end."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

DRAIN_S = 30.0  # what requests get to end after SIGTERM or SIGINT

_log = logging.getLogger(__name__)


@runtime_checkable
class Stoppable(Protocol):
    """What a process runs."""

    async def stop(self, grace_s: float) -> None:
        """Takes no more requests, gives those there are `grace_s` to end, frees everything."""
        ...


_Server = TypeVar("_Server", bound=Stoppable)


def run_until_signal(
    start: Callable[[], Awaitable[_Server]],
    *,
    ready: Callable[[_Server], None],
    ended: Callable[[_Server], Awaitable[None]] | None = None,
) -> None:
    """Runs a server until SIGTERM or SIGINT, or until it ends by itself, then drains it.

    A signal during `start` gives the start up; a second one ends the draining.

    Args:
      start: Makes a server that serves.
      ready: Told the server once, then.
      ended: Waits until the server has ended by itself; None: it never does. What it raises is
        raised once the server has stopped.
    """
    asyncio.run(_run(start, ready, ended))


async def _run(
    start: Callable[[], Awaitable[_Server]],
    ready: Callable[[_Server], None],
    ended: Callable[[_Server], Awaitable[None]] | None,
) -> None:
    signals = _Signals()
    starting = asyncio.ensure_future(start())
    if not await _first(starting, signals.next()):
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    server = await starting
    ready(server)
    over = asyncio.ensure_future(_never() if ended is None else ended(server))
    await _first(over, signals.next())
    draining = asyncio.ensure_future(server.stop(DRAIN_S))
    if not await _first(draining, signals.next()):
        await server.stop(0.0)
    await draining
    if over.done():
        over.result()
    over.cancel()


async def _never() -> None:
    await asyncio.Event().wait()


class _Signals:
    """SIGTERM and SIGINT as they come, from now on."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[signal.Signals] = asyncio.Queue()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._queue.put_nowait, number)

    async def next(self) -> None:
        """Returns when one comes."""
        number = await self._queue.get()
        _log.info("stopping: %s", number.name)


async def _first(task: "asyncio.Future[Any]", other: Awaitable[None]) -> bool:
    """Returns whether `task` was done before `other`, which is cancelled then."""
    rival = asyncio.ensure_future(other)
    await asyncio.wait({task, rival}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        return False
    rival.cancel()
    await asyncio.gather(rival, return_exceptions=True)
    return True
