"""One instance's engine and all that it was made of."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from memserve_jax.core.clock import Clock
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.core.types import CachingMode, InstanceId, Role
from memserve_jax.engine.engine import Engine
from memserve_jax.engine.events import Event
from memserve_jax.mempool.pool import MemPool
from memserve_jax.mempool.transport import Transport


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
    transports: tuple[Transport, ...] = ()  # the pool's
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
