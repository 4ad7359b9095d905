"""The messages of one answer as they arrive at the scheduler: what came together goes on together.

A message costs a proxy the same whatever its number of tokens. So while one is being written to
the client, those that arrive meanwhile are read and wait, and then leave as one.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from memserve_jax.proto import memserve_pb2 as pb

MOST_WAITING = 256  # messages; then a client that is slow to read slows the instance down


class Arrivals:
    """Reads a call of `Generate` in a task of its own. Lives in the asyncio loop; `close` it."""

    def __init__(self, call: Any):
        self._call = call
        self._waiting: list[pb.GenerateResponse] = []
        self._is_over = False
        self._has_begun = False
        self._news: asyncio.Future[None] | None = None  # somebody waits for a message
        self._room: asyncio.Future[None] | None = None  # the reader waits for room
        self._loop = asyncio.get_running_loop()
        self._reader = self._loop.create_task(self._read())

    async def take(self) -> list[pb.GenerateResponse]:
        """Returns the messages that are here and were not taken, at least one; none: it is over.

        The first ones are given at once. Later on, as long as every turn of the loop brings more
        messages, those are waited for: a loop that is behind catches up by writing less often.

        Raises:
          grpc.aio.AioRpcError: the stream broke, and all that came before was taken.
          asyncio.CancelledError: the call was cancelled.
        """
        if not self._waiting and not self._is_over:
            self._news = self._loop.create_future()
            try:
                await self._news
            finally:
                self._news = None
        if self._has_begun:
            seen = 0
            while seen < len(self._waiting) and not self._is_over:
                seen = len(self._waiting)
                await asyncio.sleep(0)
        self._has_begun = True
        taken, self._waiting = self._waiting, []
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if not taken:
            await self._reader
        return taken

    async def close(self) -> None:
        """Stops reading. The call itself is the caller's to cancel."""
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._reader

    async def _read(self) -> None:
        try:
            async for message in self._call:
                self._waiting.append(message)
                self._tell()
                if len(self._waiting) >= MOST_WAITING:
                    self._room = self._loop.create_future()
                    await self._room
        finally:
            self._is_over = True
            self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def joined(messages: Sequence[pb.GenerateResponse]) -> pb.GenerateResponse:
    """Returns one message that says what consecutive ones of an answer say; the first is changed.

    Args:
      messages: At least one; only the last may carry what ends the answer.
    """
    first = messages[0]
    if len(messages) > 1:
        index, text = first.first_index, "".join(message.text for message in messages)
        for message in messages[1:]:
            first.MergeFrom(message)
        first.first_index, first.text = index, text
    return first
