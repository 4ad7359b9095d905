"""An engine and a pool that do what a test tells them, for what stands in front of them."""

import threading
from collections.abc import Callable, Sequence

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import MemServeError, OverloadedError
from memserve_jax.core.kv_events import KVEvents, KVSnapshot
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.core.types import (
    CachingMode,
    InstanceId,
    Request,
    RequestId,
    Role,
    SamplingParams,
    TransferId,
    TransferMode,
)
from memserve_jax.engine.counters import Counters, Load
from memserve_jax.engine.engine import Engine
from memserve_jax.engine.events import Event, Failed, FirstToken, PrefillDone, Tokens
from memserve_jax.mempool.control import (
    FetchAnswer,
    FetchCall,
    ReserveAnswer,
    ReserveCall,
    RespondCommit,
    RespondFetch,
    RespondReserve,
)
from memserve_jax.mempool.counters import PoolStatus
from memserve_jax.mempool.pool import MemPool
from memserve_jax.serving.engine_parts import EngineParts, Identity


class FakeEngine(Engine):
    """Notes every call; `step` returns what `plan` says for the requests that came in."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.in_flight: set[RequestId] = set()
        self.failures: list[Exception] = []  # raised by the next steps, one each
        self.on_submit: Callable[[Request], Sequence[Event]] = lambda request: ()
        self.on_first_token: Callable[[FirstToken], Sequence[Event]] = lambda first: ()
        self.called = threading.Event()
        self.problem = ""  # what `check` finds
        self._events_to_come: list[Event] = []

    def _note(self, name: str, what: object) -> None:
        self.calls.append((name, what))
        self.called.set()

    def say(self, events: Sequence[Event]) -> None:
        """Has the next step return `events`. On the engine's thread only."""
        self._events_to_come += events

    def submit(self, request: Request) -> None:
        self._note("submit", request)
        self.in_flight.add(request.request_id)
        self.say(self.on_submit(request))

    def submit_prefill(
        self, request: Request, decode: InstanceId, decode_epoch: int | None = None
    ) -> None:
        self._note("submit_prefill", (request, decode, decode_epoch))
        self.in_flight.add(request.request_id)
        self.say(self.on_submit(request))

    def expect(self, request: Request, prefill: InstanceId) -> None:
        self._note("expect", (request, prefill))
        self.in_flight.add(request.request_id)

    def first_token(self, first: FirstToken) -> None:
        self._note("first_token", first)
        self.say(self.on_first_token(first))

    def fail(self, request_id: RequestId, error: MemServeError) -> None:
        self._note("fail", (request_id, error))
        self.in_flight.discard(request_id)
        self.say([Failed(request_id=request_id, error=error)])

    def cancel(self, request_id: RequestId) -> None:
        self._note("cancel", request_id)
        self.in_flight.discard(request_id)

    def step(self) -> list[Event]:
        if self.failures:
            raise self.failures.pop(0)
        events, self._events_to_come = self._events_to_come, []
        for event in events:
            is_last = isinstance(event, Failed | PrefillDone)
            if is_last or (isinstance(event, Tokens) and event.finish_reason is not None):
                self.in_flight.discard(event.request_id)
        return events

    @property
    def has_work(self) -> bool:
        return bool(self._events_to_come)

    @property
    def num_in_flight(self) -> int:
        return len(self.in_flight)

    @property
    def max_context_tokens(self) -> int:
        return 64

    @property
    def max_running(self) -> int:
        return 4

    @property
    def counters(self) -> Counters:
        return Counters(requests=len(self.calls))

    @property
    def transfer_mode(self) -> TransferMode:
        return TransferMode.BY_REQUEST_AGGREGATED

    @property
    def load(self) -> Load:
        return Load(
            running=len(self.in_flight),
            waiting=0,
            queued_prefill_tokens=0,
            prefill_tokens_per_s=0.0,
        )

    def check(self) -> None:
        assert self.problem == "", self.problem


class FakePool(MemPool):
    """Answers the calls of peers as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.answer: ReserveAnswer | None = ReserveAnswer(accepted=True, receiver_epoch=7)
        self.commit_error: MemServeError | None = None
        self.leased = 0
        self.fetch_answer: FetchAnswer | MemServeError | None = FetchAnswer(3, 48)
        self.wake = lambda: None
        self.events = KVEvents(0, ())
        self.snapshot = KVSnapshot(0, ())
        self.flushes: list[bool] = []  # answers of the next ones; then True

    def flush(self) -> bool:
        self.calls.append(("flush", None))
        return self.flushes.pop(0) if self.flushes else True

    def reserve(self, call: ReserveCall, respond: RespondReserve) -> None:
        self.calls.append(("reserve", call))
        if self.answer is not None:
            respond(self.answer)

    def commit(self, transfer_id: TransferId, respond: RespondCommit) -> None:
        self.calls.append(("commit", transfer_id))
        respond(self.commit_error)

    def abort(self, transfer_id: TransferId, reason: str) -> None:
        self.calls.append(("abort", transfer_id))

    def pin(self, token_ids: Sequence[int], *, salt: str = "") -> int:
        if len(token_ids) > 2:
            raise OverloadedError("pin: too much")
        self.calls.append(("pin", (token_ids, salt)))
        return len(token_ids)

    def unpin(self, token_ids: Sequence[int], *, salt: str = "") -> int:
        self.calls.append(("unpin", (token_ids, salt)))
        return 0

    def peers_changed(self, live: object) -> None:
        self.calls.append(("peers_changed", live))

    def kv_events(self) -> KVEvents:
        return self.events

    def kv_snapshot(self) -> tuple[KVEvents, KVSnapshot]:
        self.events = KVEvents(self.snapshot.next_event, ())
        return self.events, self.snapshot

    def close(self) -> None:
        self.calls.append(("close", None))

    @property
    def next_deadline_s(self) -> float | None:
        return None

    @property
    def num_leased(self) -> int:
        return self.leased

    @property
    def num_transfers(self) -> int:
        return 1

    @property
    def num_reservations(self) -> int:
        return 2

    def serve_fetch(self, call: FetchCall, respond: RespondFetch) -> None:
        self.calls.append(("serve_fetch", call))
        if self.fetch_answer is not None:
            respond(self.fetch_answer)

    @property
    def num_hbm_blocks(self) -> int:
        return 32

    @property
    def status(self) -> PoolStatus:
        return PoolStatus(tiers=())


class NoCodec:
    """A vocabulary nobody uses: prompts come as token ids."""

    byte_values = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        raise AssertionError(text)

    def decode(self, token_ids: list[int]) -> str:
        raise AssertionError(token_ids)

    def visible(self, token_id: int) -> bool:
        raise AssertionError(token_id)

    def is_byte(self, token_id: int) -> bool:
        raise AssertionError(token_id)

    def context_after(self, context: list[int], token_ids: list[int], text: str) -> list[int]:
        raise AssertionError(text)

    def token_id(self, token: str) -> int | None:
        return None


def fake_parts(role: Role = Role.COLOCATED, *, name: str = "c0") -> EngineParts:
    """Returns the parts of an instance whose engine and pool are fakes."""
    card = ModelCard(
        path="nowhere",
        name="fake",
        vocab_size=100,
        max_context_tokens=64,
        bos_token_id=None,
        eos_token_ids=frozenset(),
        sampling=SamplingParams(),
    )
    return EngineParts(
        identity=Identity(
            instance=InstanceId(name),
            epoch=7,
            role=role,
            caching=CachingMode.ON if role is Role.COLOCATED else CachingMode.PD_CACHING_3,
            tp=1,
            block_size_tokens=4,
        ),
        engine=FakeEngine(),
        pool=FakePool(),
        card=card,
        tokenizer=Tokenizer(NoCodec()),
        clock=ManualClock(),
    )
