"""One instance's engine: requests in, steps on the device, events out. One thread owns it."""

from memserve_jax.core.clock import Clock
from memserve_jax.core.config import EngineSection, MemPoolSection
from memserve_jax.core.errors import DuplicateRequestError, MemServeError, OverloadedError
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.core.types import (
    CachingMode,
    FinishReason,
    InstanceId,
    Request,
    RequestId,
    Role,
)
from memserve_jax.engine.batcher import Batcher, Chunk
from memserve_jax.engine.buckets import ladder_of
from memserve_jax.engine.counters import Counters
from memserve_jax.engine.engine_facts import EngineFacts
from memserve_jax.engine.events import Event, Failed, FirstToken
from memserve_jax.engine.forecast import Forecast
from memserve_jax.engine.handoff import HandOffs
from memserve_jax.engine.inputs import RowTable
from memserve_jax.engine.intake import Intake, limits_of
from memserve_jax.engine.memory import SequenceMemory
from memserve_jax.engine.pipeline import NewToken, Pipeline
from memserve_jax.engine.preload import Preload
from memserve_jax.engine.reports import ended, grown, handed_over, moved
from memserve_jax.engine.runner import Progress, Runner, make_grouping
from memserve_jax.engine.send_back import SendBacks
from memserve_jax.engine.sequence import Duty, Phase, Sequence
from memserve_jax.engine.steps import Steps
from memserve_jax.engine.transfer_mode import ModeSwitch
from memserve_jax.mempool.arrival import Arrival
from memserve_jax.mempool.pool import MemPool
from memserve_jax.mempool.transfer import Transfer
from memserve_jax.model.bundle import ModelBundle


class Engine(EngineFacts):
    """Continuous batching over one mesh, one model and one MemPool.

    Prefill, decode and colocated instances run the same class; which calls they get differs.
    Nothing here blocks but `warm_up` and the one device read inside `step`. The owner calls
    `step` while `has_work`, after every other call, whenever `pool.wake` fired, and by
    `pool.next_deadline_s`.
    """

    def __init__(
        self,
        *,
        instance: InstanceId,
        role: Role,
        caching: CachingMode,
        config: EngineSection,
        bundle: ModelBundle,
        pool: MemPool,
        card: ModelCard,
        tokenizer: Tokenizer,
        clock: Clock,
        mempool: MemPoolSection | None = None,
        steps: Steps | None = None,
        forecast: Forecast | None = None,
    ):
        self.instance, self.role = instance, role
        self._config, self._pool, self._clock = config, pool, clock
        size = pool.pages.page_size
        limits = limits_of(config, card, pool.num_hbm_blocks, size)
        self._limits = limits
        self._block_size_tokens = size
        mempool = mempool or MemPoolSection()
        self._switch = ModeSwitch(mempool)
        self.copies = self._switch.copies(pool.layout)
        self._intake = Intake(limits=limits, card=card, tokenizer=tokenizer, clock=clock)
        caches = caching.decode_caches if role is Role.DECODE else caching.prefill_caches
        self._forecast = forecast or Forecast()
        self._preload = Preload(
            pool, caches=caches, timeout_s=mempool.prefetch_timeout_s, forecast=self._forecast
        )
        self._memory = SequenceMemory(
            pool,
            self._preload,
            block_size_tokens=size,
            caches=caches,
            swaps=config.preemption == "swap",
        )
        self._batcher = Batcher(
            self._memory, max_running=config.max_running, chunk_tokens=config.chunk_tokens
        )
        rows = RowTable(
            num_rows=config.max_running, table_width=self._memory.blocks_for(limits.context_tokens)
        )
        grouping = make_grouping(role, pool.layout, mempool, self._switch)
        ladder = ladder_of(config, decodes=role is not Role.PREFILL)
        self._runner = Runner(
            bundle, pool, ladder=ladder, rows=rows, grouping=grouping, steps=steps
        )
        self._hand_offs = HandOffs(
            pool, caching, self._switch, config.chunk_tokens, mempool.transfer_timeout_s
        )
        self._send_backs = SendBacks(pool, caching, timeout_s=mempool.transfer_timeout_s)
        self._pipeline = Pipeline(self._runner, rows, clock, self._hand_offs, self._forecast)
        self._sequences: dict[RequestId, Sequence] = {}
        self._events: list[Event] = []
        self._is_stalled = False
        self._counters = Counters()

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compiles every shape of the ladder. `progress(done, total, what)` after each."""
        self._runner.warm_up(progress)

    # requests ---------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Takes a request to answer here, prefill and decode. Events: `Tokens`, `Failed`.

        Raises:
          InvalidRequestError: the prompt can never be served here; names the field.
          DuplicateRequestError: the id is in flight here.
          OverloadedError: `max_waiting` requests wait already.
        """
        self._batcher.add(self._take(request, Duty.ANSWER, None))

    def submit_prefill(
        self, request: Request, decode: InstanceId, decode_epoch: int | None = None
    ) -> None:
        """Takes a request to prefill here and hand over to `decode`, a peer of the pool.

        Its life `decode_epoch` is meant, or the one last announced. Events: `FirstToken`, then
        `PrefillDone` or `Failed`. Raises as `submit`.
        """
        sequence = self._take(request, Duty.PREFILL, decode)
        sequence.peer_epoch = decode_epoch
        self._batcher.add(sequence)

    def expect(self, request: Request, prefill: InstanceId) -> None:
        """Takes a request that `prefill` prefills: its first token and its KV will come.

        Call it before the prefill is asked for. Events: `Tokens`, `Failed`. Raises as `submit`.
        """
        self._take(request, Duty.DECODE, prefill)

    def first_token(self, first: FirstToken) -> None:
        """Hands over what the prefill instance sampled; before or after the KV's arrival.

        Becomes a `Tokens` event of the next `step`. Unknown (cancelled) requests are ignored.
        """
        sequence = self._sequences.get(first.request_id)
        if sequence is None or sequence.duty is not Duty.DECODE or sequence.has_begun:
            return
        sequence.seed = first.seed
        sequence.cached_tokens = first.cached_tokens
        sequence.queue_s = first.queue_s
        self._is_stalled = False
        if first.finish_reason is FinishReason.LENGTH:  # the context over there is shorter
            sequence.answer.max_tokens = sequence.answer.num_tokens + 1
        self._accept(
            sequence, NewToken(sequence, first.token_id, first.logprob, first.top_logprobs)
        )
        if sequence.phase is Phase.AWAITING_KV and first.finish_reason is not None:
            self._end(sequence)  # no KV will follow
            self._events.append(ended(sequence, first.finish_reason))
        self._start_decoding(sequence)

    def fail(self, request_id: RequestId, error: MemServeError) -> None:
        """Ends a request that waits for a peer that failed: releases everything, emits `Failed`.

        Unknown requests are ignored, and those that have all they need of the peer.
        """
        sequence = self._sequences.get(request_id)
        if sequence is not None and sequence.phase is Phase.AWAITING_KV:
            self._events.append(Failed(request_id=request_id, error=error))
            self._end(sequence)

    def cancel(self, request_id: RequestId) -> None:
        """Ends a request in any phase and emits `Tokens` with CANCELLED.

        Its blocks are free when this returns, or when a copy in flight ends. Unknown requests
        are ignored.
        """
        if (sequence := self._sequences.get(request_id)) is not None:
            self._counters.cancelled += 1
            self._events.append(ended(sequence, FinishReason.CANCELLED))
            self._end(sequence, "cancelled")

    def _take(self, request: Request, duty: Duty, peer: InstanceId | None) -> Sequence:
        if request.request_id in self._sequences:
            raise DuplicateRequestError(f"request_id {request.request_id} is in flight")
        num_waiting = len(self._sequences) - len(self._batcher.running)
        if num_waiting >= self._config.max_waiting:
            raise OverloadedError(
                f"{self.instance}: {num_waiting} requests wait, allowed: {self._config.max_waiting}"
            )
        sequence = self._intake.sequence(request, duty, peer)
        self._sequences[request.request_id] = sequence
        self._is_stalled = False
        self._counters.requests += 1
        if duty is not Duty.DECODE:
            self._counters.prompt_tokens += sequence.num_given
            self._preload.begin(sequence)
        return sequence

    # a step -----------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Moves everything on by one step: arrivals, one dispatch, one read, hand-offs.

        The step dispatched here is read by the next call, so that the device has work while
        the host reads and plans.
        """
        self._send_backs.begin_queued()
        self._hand_offs.open_ahead(self._batcher.waiting)
        self._make_room()
        chunks = self._batcher.plan()
        self._switch.observe(sum(sequence.num_left for sequence in self._batcher.waiting))
        self._is_stalled = not chunks
        self._accept_all(self._pipeline.exchange(chunks))
        self._remember_prompts(chunks)
        self._poll()
        events, self._events = self._events, []
        return events

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something now. False while only peers can move things on."""
        if self._events or self._send_backs.has_queued or not self._pipeline.is_empty:
            return True
        return not self._is_stalled and bool(self._batcher.running or self._batcher.waiting)

    def _poll(self) -> None:
        """Lets the pool move on. After planning: memory freed here goes to those who wait here."""
        num_available = self._pool.num_available
        arrivals = self._pool.poll()
        for arrival in arrivals:
            self._take_arrival(arrival)
        if self._preload.settle() or arrivals or self._pool.num_available != num_available:
            self._is_stalled = False

    def _make_room(self) -> None:
        """Sees to it that rows that decode have their next block; others give way if need be."""
        if self._batcher.grow():
            return
        self._send_backs.drop_queued()
        self._accept_all(self._pipeline.drain())  # some may have ended; no token stays unknown
        while not self._batcher.grow() and (victim := self._batcher.preempt()):
            self._hand_offs.drop(victim, "preempted")
            self._counters.preemptions += 1

    def _remember_prompts(self, chunks: list[Chunk]) -> None:
        """Indexes prompts whose KV is complete when the step just dispatched is."""
        for chunk in chunks:
            sequence = chunk.sequence
            num_before = sequence.num_computed - chunk.num_tokens
            if num_before < sequence.num_given <= sequence.num_computed:
                self._memory.remember(sequence, list(sequence.request.given_token_ids))

    def _accept_all(self, tokens: list[NewToken]) -> None:
        for token in tokens:
            self._counters.output_tokens += 1
            if token.sequence.duty is Duty.PREFILL:
                self._hand_over(token)
            else:
                self._accept(token.sequence, token)

    # one sequence -----------------------------------------------------------------------

    def _accept(self, sequence: Sequence, token: NewToken) -> None:
        """Adds a token to an answer that this engine gives, and ends it if that ends it."""
        index = sequence.answer.num_tokens
        piece = sequence.answer.push(token.token_id)
        sequence.token_ids.append(token.token_id)
        self._events.append(grown(sequence, token, piece, index))
        if piece.finish_reason is not None:
            if sequence.phase is Phase.RUNNING:
                self._memory.remember(sequence, sequence.history)
                if sequence.duty is Duty.DECODE:
                    self._send_backs.queue(sequence)
            self._end(sequence)

    def _hand_over(self, token: NewToken) -> None:
        """Tells of a prompt's first token, and moves its KV unless the answer ends there."""
        sequence = token.sequence
        finish_reason = sequence.answer.push(token.token_id).finish_reason
        sequence.token_ids.append(token.token_id)
        self._events.append(handed_over(sequence, token, finish_reason))
        if finish_reason is not None:
            self._end(sequence)
            self._events.append(moved(sequence, 0, 0))
            return
        self._batcher.drop(sequence)
        sequence.enter(Phase.HANDING_OFF)
        self._hand_offs.send(sequence, self._handed_over)

    def _handed_over(self, sequence: Sequence, transfer: Transfer) -> None:
        if sequence.phase is Phase.FINISHED:  # cancelled meanwhile
            return
        self._end(sequence)
        if transfer.error is None:
            self._events.append(moved(sequence, transfer.num_blocks, transfer.num_bytes))
        else:
            self._events.append(Failed(request_id=sequence.request_id, error=transfer.error))

    def _take_arrival(self, arrival: Arrival) -> None:
        """Gives KV that came to the request it belongs to, or back if that is gone."""
        sequence = self._sequences.get(RequestId(arrival.private.decode()))
        is_wanted = (
            sequence is not None
            and sequence.phase is Phase.AWAITING_KV
            and sequence.lease is None
            and sequence.num_given == arrival.num_tokens
        )
        if sequence is None or not is_wanted:
            arrival.lease.close()
            return
        sequence.lease = arrival.lease
        sequence.num_blocks = len(arrival.lease)
        sequence.num_computed = arrival.num_tokens
        self._start_decoding(sequence)

    def _start_decoding(self, sequence: Sequence) -> None:
        """Queues a sequence for a row once it has both its KV and its first token."""
        is_awaiting = sequence.phase is Phase.AWAITING_KV
        if is_awaiting and sequence.lease is not None and sequence.has_begun:
            sequence.enter(Phase.WAITING)
            self._batcher.add(sequence)

    def _end(self, sequence: Sequence, reason: str = "the answer has ended") -> None:
        if sequence.is_scheduled:
            self._batcher.drop(sequence)
        sequence.enter(Phase.FINISHED)
        self._memory.release(sequence)
        self._is_stalled = False  # a row or blocks have become free
        del self._sequences[sequence.request_id]
        self._hand_offs.drop(sequence, reason)

    def check(self) -> None:
        """Asserts that sequences, rows, queues, leases and the pool agree."""
        self._batcher.check()
        in_batcher = {id(one) for one in self._batcher.running + self._batcher.waiting}
        for sequence in self._sequences.values():
            assert sequence.is_scheduled == (id(sequence) in in_batcher), sequence.phase
            sequence.check(self._block_size_tokens)
        self._pool.check()
