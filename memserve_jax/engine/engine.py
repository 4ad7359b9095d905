"""One instance's engine: requests in, steps on the device, events out. One thread owns it."""

from collections.abc import Callable

from memserve_jax.core.clock import Clock
from memserve_jax.core.config import EngineSection
from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import CachingMode, InstanceId, Request, RequestId, Role
from memserve_jax.engine.counters import Counters, Load
from memserve_jax.engine.events import Event, FirstToken


class Engine:
    """Continuous batching over one mesh, one model and one MemPool.

    Prefill, decode and colocated instances run the same class; which calls they get differs.
    Nothing here blocks but `warm_up` and the one device read inside `step`. The owner calls
    `step` while `has_work`, after every other call, and whenever `pool.wake` fired.
    """

    def __init__(
        self,
        *,
        instance: InstanceId,
        role: Role,
        caching: CachingMode,
        config: EngineSection,
        bundle,
        pool,
        card,
        tokenizer,
        clock: Clock,
    ): ...

    def warm_up(self, progress: Callable[[int, int, str], None] | None = None) -> None:
        """Compiles every shape of the ladder. `progress(done, total, what)` after each."""
        ...

    def submit(self, request: Request) -> None:
        """Takes a request to answer here, prefill and decode. Events: `Tokens`, `Failed`.

        Raises:
          InvalidRequestError: the prompt can never be served here; names the field.
          DuplicateRequestError: the id is in flight here.
          OverloadedError: `max_waiting` requests wait already.
        """
        ...

    def submit_prefill(self, request: Request, decode: InstanceId) -> None:
        """Takes a request to prefill here and hand over to `decode`, a peer of the pool.

        Events: `FirstToken`, then `PrefillDone` or `Failed`. Raises as `submit`.
        """
        ...

    def expect(self, request: Request, prefill: InstanceId) -> None:
        """Takes a request that `prefill` prefills: its first token and its KV will come.

        Call it before the prefill is asked for. Events: `Tokens`, `Failed`. Raises as `submit`.
        """
        ...

    def first_token(self, first: FirstToken) -> None:
        """Hands over what the prefill instance sampled; before or after the KV's arrival.

        Becomes a `Tokens` event of the next `step`. Unknown (cancelled) requests are ignored.
        """
        ...

    def fail(self, request_id: RequestId, error: MemServeError) -> None:
        """Ends a request whose peer failed: releases everything, emits `Failed`. Unknown: ignored."""
        ...

    def cancel(self, request_id: RequestId) -> None:
        """Ends a request in any phase; its blocks are free when this returns, or when a copy
        in flight ends. Emits `Tokens` with CANCELLED. Unknown: ignored.
        """
        ...

    def step(self) -> list[Event]:
        """Moves everything on by one step: arrivals, one dispatch, one read, hand-offs."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something now. False while only peers can move things on."""
        ...

    @property
    def num_in_flight(self) -> int:
        """Requests not ended yet, in any phase, send-backs included: 0 when quiescent."""
        ...

    @property
    def counters(self) -> Counters:
        """Running totals since the start, fields as proto `Counters`; a snapshot."""
        ...

    @property
    def load(self) -> Load:
        """What a scheduler wants to know: running, waiting, queued_prefill_tokens, rate."""
        ...

    @property
    def max_context_tokens(self) -> int:
        """Tokens a prompt and its answer may have together on this instance."""
        ...

    def check(self) -> None:
        """Asserts that rows, queues, leases and the pool agree."""
        ...
