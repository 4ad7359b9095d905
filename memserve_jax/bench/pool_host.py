"""Pools of one process without engines: a thread that owns them, and their control channel."""

import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import jax

from memserve_jax.bench.call_link import CallLink, Respond
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.announce import Announcement
from memserve_jax.mempool.arrival import Arrival
from memserve_jax.mempool.control import FetchAnswer, FetchCall, ReserveAnswer, ReserveCall
from memserve_jax.mempool.pool import MemPool

MAX_PAUSE_S = 0.05  # between two polls, where nothing wakes the owner
ABORT_TIMEOUT_S = 5.0
_T = TypeVar("_T")


class PoolHost:
    """Owns pools on one thread, and is `PeerChannel` and `Announcer` to all of them."""

    def __init__(self, on_arrival: Callable[[MemPool, Arrival], None]):
        """`on_arrival` is given the lease of whatever arrives."""
        self.pools: dict[InstanceId, MemPool] = {}
        self.links: dict[InstanceId, CallLink] = {}  # to pools of other processes
        self._on_arrival = on_arrival
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pool-owner", daemon=True)
        self._thread.start()

    def add(self, pool: MemPool) -> None:
        """Owns a pool from now on, in place of an earlier one of the same name."""
        pool.wake = lambda: self._work.put(_nothing)
        self.do(lambda: self.pools.__setitem__(pool.instance, pool))

    def do(self, work: Callable[[], _T]) -> _T:
        """Returns what `work` returns, done by the owner."""
        return self.start(work).result()

    def start(self, work: Callable[[], _T]) -> "Future[_T]":
        """Leaves `work` to the owner."""
        future: Future[_T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        self._work.put(run)
        return future

    def close(self) -> None:
        """Ends the owner."""
        self._work.put(None)
        self._thread.join()

    # PeerChannel and Announcer ------------------------------------------------------------

    def reserve(
        self, to: InstanceId, call: ReserveCall, *, timeout_s: float
    ) -> "Future[ReserveAnswer]":
        """See `PeerChannel.reserve`."""
        return self._call(to, "reserve", call, timeout_s=timeout_s)

    def commit(
        self, to: InstanceId, transfer_id: TransferId, *, timeout_s: float
    ) -> "Future[None]":
        """See `PeerChannel.commit`."""
        return self._call(to, "commit", transfer_id, timeout_s=timeout_s)

    def abort(self, to: InstanceId, transfer_id: TransferId, reason: str) -> "Future[None]":
        """See `PeerChannel.abort`."""
        return self._call(to, "abort", transfer_id, reason, timeout_s=ABORT_TIMEOUT_S)

    def fetch(
        self, owner: InstanceId, call: FetchCall, *, timeout_s: float
    ) -> "Future[FetchAnswer]":
        """See `PeerChannel.fetch`: nobody fetches here."""
        future: Future[FetchAnswer] = Future()
        future.set_exception(TransferFailedError(f"fetch from {owner}: nobody fetches here"))
        return future

    def announce(
        self, to: InstanceId, announcement: Announcement, *, timeout_s: float
    ) -> "Future[None]":
        """See `Announcer.announce`."""
        return self._call(to, "announce", announcement, timeout_s=timeout_s)

    def settled(self, to: InstanceId, *, timeout_s: float) -> "Future[None]":
        """Resolves when all copies into a pool's pages, here or there, are done."""
        return self._call(to, "settle", timeout_s=timeout_s)

    def serve(self, kind: str, arguments: tuple[Any, ...], respond: Respond) -> None:
        """Answers a peer's call: a `Serve` for links."""
        pool = self.pools.get(arguments[0])
        if pool is None:
            respond(TransferFailedError(f"{arguments[0]} is not here"))
        elif kind == "announce":
            pool.announced(arguments[1], respond)
        else:
            self._work.put(functools.partial(_serve, pool, kind, arguments[1:], respond))

    def _call(
        self, to: InstanceId, kind: str, *arguments: object, timeout_s: float
    ) -> "Future[Any]":
        link = self.links.get(to)
        if link is not None:
            return link.call(kind, to, *arguments, timeout_s=timeout_s)
        future: Future[Any] = Future()

        def respond(answer: object) -> None:
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self.serve(kind, (to, *arguments), respond)
        return future

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=MAX_PAUSE_S)
            except queue.Empty:
                work = _nothing
            if work is None:
                return
            work()
            for pool in list(self.pools.values()):
                for arrival in pool.poll():
                    self._on_arrival(pool, arrival)


def _serve(pool: MemPool, kind: str, arguments: tuple[Any, ...], respond: Respond) -> None:
    if kind == "reserve":
        pool.reserve(arguments[0], respond)
    elif kind == "commit":
        pool.commit(arguments[0], respond)
    elif kind == "abort":
        pool.abort(*arguments)
        respond(None)
    else:
        assert kind == "settle", kind
        jax.block_until_ready(pool.pages)
        respond(None)


def _nothing() -> None:
    pass
