"""What the services of one instance share: who it is, its engine, and whether it takes work."""

import asyncio
import contextlib
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import MemServeError, NoInstanceError
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.core.types import CachingMode, InstanceId, RequestId, Role
from memserve_jax.engine.engine import Engine
from memserve_jax.engine.events import Event
from memserve_jax.mempool.pool import MemPool
from memserve_jax.proto.convert import Limits
from memserve_jax.serving.loop import EngineLoop
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.streams import EventStreams

_T = TypeVar("_T")


class State(enum.StrEnum):
    """Whether an instance takes requests."""

    SERVING = "serving"
    DRAINING = "draining"  # finishes what it has
    DOWN = "down"  # its engine is broken


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What never changes in one life of an instance."""

    instance: InstanceId
    epoch: int
    role: Role
    caching: CachingMode
    tp: int
    block_size_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParts:
    """An engine with all that it was made of. The engine thread owns engine and pool."""

    identity: Identity
    engine: Engine
    pool: MemPool
    card: ModelCard
    tokenizer: Tokenizer
    clock: Clock

    @property
    def has_work(self) -> bool:
        """Whether a step now would get something done."""
        return self.engine.has_work

    @property
    def is_quiet(self) -> bool:
        """Whether no request, transfer or lease is left."""
        return self.engine.num_in_flight == 0 and self.pool.num_leased == 0

    @property
    def wait_s(self) -> float | None:
        """Seconds until something is past its deadline; None where nothing has one."""
        deadline_s = self.pool.next_deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - self.clock.now_s())

    def step(self) -> Sequence[Event]:
        """Does one step and returns what happened."""
        return self.engine.step()


class Instance:
    """One instance as its servicers see it. Lives in the asyncio loop."""

    def __init__(
        self,
        parts: EngineParts,
        *,
        target: str,
        peers: Peers,
        asyncio_loop: asyncio.AbstractEventLoop,
    ):
        """Makes the engine thread, not started yet, and gives the pool its wake-up.

        Args:
          parts: The engine thread's once it has started.
          target: HOST:PORT where peers and clients reach this instance.
          peers: Where the other instances are.
          asyncio_loop: What this object and the servicers live in.
        """
        self.parts = parts
        self.identity = parts.identity
        self.target = target
        self.peers = peers
        self.streams = EventStreams()
        self.limits = Limits(
            max_context_tokens=parts.engine.max_context_tokens,
            max_kv_tokens=parts.pool.num_hbm_blocks * parts.identity.block_size_tokens,
        )
        self.draining = False
        self.loop = EngineLoop(
            parts,
            name=f"engine-{parts.identity.instance}",
            deliver=lambda events: self._in_asyncio(lambda: self.streams.deliver(events)),
            step_failed=lambda error: self._in_asyncio(lambda: self._fail_all(error)),
        )
        self._asyncio_loop = asyncio_loop
        parts.pool.wake = self.loop.wake

    @property
    def state(self) -> State:
        """Whether it takes requests."""
        if self.loop.broken is not None:
            return State.DOWN
        return State.DRAINING if self.draining else State.SERVING

    def refuse_unless_serving(self) -> None:
        """Does nothing while requests are taken.

        Raises:
          NoInstanceError: the instance drains or is down.
        """
        if self.state is not State.SERVING:
            raise NoInstanceError(f"instance {self.identity.instance} is {self.state}")

    async def run(self, command: Callable[[], _T]) -> _T:
        """Runs `command` on the engine thread and returns its result, or raises its error."""
        return await asyncio.wrap_future(self.loop.call(command))

    def cancel(self, request_id: RequestId) -> None:
        """Ends a request in any phase; its blocks are free within one step."""
        self.loop.post(lambda: self.parts.engine.cancel(request_id))

    async def quiesce(self) -> None:
        """Returns when no request, transfer or lease is left."""
        await asyncio.wrap_future(self.loop.when_quiet())

    def _in_asyncio(self, callback: Callable[[], None]) -> None:
        # RuntimeError: the asyncio loop is closed, so nobody waits for events any more.
        with contextlib.suppress(RuntimeError):
            self._asyncio_loop.call_soon_threadsafe(callback)

    def _fail_all(self, error: Exception) -> None:
        name = self.identity.instance
        self.streams.fail_all(MemServeError(f"instance {name}: a step failed: {error}"))
