"""One request inside an engine: how far it is, what it holds."""

import enum
from dataclasses import dataclass, field

from memserve_jax.core.types import InstanceId, Request, RequestId
from memserve_jax.engine.output import Answer
from memserve_jax.mempool.lease import Lease


class Phase(enum.StrEnum):
    """Where a sequence is."""

    WAITING = "waiting"  # for a row, and for blocks unless it holds some
    PREFILLING = "prefilling"  # has a row; tokens known to the host are being computed
    RUNNING = "running"  # has a row; one token a step
    AWAITING_KV = "awaiting_kv"  # decode side: the first token, the KV, or both are to come
    HANDING_OFF = "handing_off"  # prefill side: its KV is on the way to the decode side
    FINISHED = "finished"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.PREFILLING, Phase.FINISHED}),
    Phase.PREFILLING: frozenset({Phase.RUNNING, Phase.WAITING, Phase.HANDING_OFF, Phase.FINISHED}),
    Phase.RUNNING: frozenset({Phase.WAITING, Phase.FINISHED}),
    Phase.AWAITING_KV: frozenset({Phase.WAITING, Phase.FINISHED}),
    Phase.HANDING_OFF: frozenset({Phase.FINISHED}),
    Phase.FINISHED: frozenset(),
}


class Duty(enum.StrEnum):
    """What this engine does for a request."""

    ANSWER = "answer"  # all of it
    PREFILL = "prefill"  # up to the first token, for the decode instance `peer`
    DECODE = "decode"  # from the first token on, after the prefill instance `peer`


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """A request's tokens, blocks and phase. The engine's thread owns it.

    `token_ids` is what the host has seen: prompt, then answer. A step dispatched but not read
    may have sampled one more, counted by `num_unread`.
    """

    request: Request
    duty: Duty
    answer: Answer
    seed: int
    order: int  # of arrival here
    arrival_s: float  # by the engine's clock
    peer: InstanceId | None = None
    peer_epoch: int | None = None  # of the life that is meant; None: the one last announced
    phase: Phase = Phase.WAITING
    token_ids: list[int] = field(default_factory=list)
    num_unread: int = 0
    num_computed: int = 0  # tokens whose KV is in the blocks, or will be when the step ends
    lease: Lease | None = None
    num_blocks: int = 0  # of the lease
    row: int | None = None
    cached_tokens: int | None = None  # of the first attempt; None before it
    queue_s: float | None = None  # until first computed; None before

    @property
    def request_id(self) -> RequestId:
        """The request's id."""
        return self.request.request_id

    @property
    def num_prompt(self) -> int:
        """Prompt tokens, n."""
        return len(self.request.prompt_token_ids)

    @property
    def num_given(self) -> int:
        """Tokens that came with the request: its prompt, and what was answered before."""
        return self.num_prompt + len(self.request.resumed_token_ids)

    @property
    def has_begun(self) -> bool:
        """Whether a token has been sampled for it, here or by its peer."""
        return len(self.token_ids) > self.num_given

    @property
    def num_tokens(self) -> int:
        """Tokens so far, an unread one included."""
        return len(self.token_ids) + self.num_unread

    @property
    def num_left(self) -> int:
        """Tokens whose KV is to be computed before the next one can be sampled."""
        return self.num_tokens - self.num_computed

    @property
    def max_kv_tokens(self) -> int:
        """Most tokens of KV it can come to need: the last token of an answer has none."""
        if self.duty is Duty.PREFILL:
            return self.num_given
        return self.num_prompt + self.answer.max_tokens - 1

    @property
    def is_scheduled(self) -> bool:
        """Whether the batcher has it: in its queue or on a row."""
        return self.phase in (Phase.WAITING, Phase.PREFILLING, Phase.RUNNING)

    @property
    def wants_step(self) -> bool:
        """Whether another token is wanted, as far as counting can tell."""
        if self.duty is Duty.PREFILL:
            return self.num_tokens == self.num_given
        return self.num_tokens - self.num_prompt < self.answer.max_tokens

    @property
    def rank(self) -> tuple[int, int]:
        """Who goes first: lower priority value, then earlier arrival."""
        return (self.request.priority, self.order)

    @property
    def history(self) -> list[int]:
        """The tokens whose KV the blocks hold: the last one seen has none that counts."""
        return self.token_ids[: min(self.num_computed, len(self.token_ids) - 1)]

    def enter(self, phase: Phase) -> None:
        """Moves to `phase`, as the table allows."""
        assert phase in TRANSITIONS[self.phase], f"{self.request_id}: {self.phase} -> {phase}"
        self.phase = phase

    def check(self, block_size_tokens: int) -> None:
        """Asserts that one under way holds what it counts."""
        assert self.phase is not Phase.FINISHED
        if self.lease is not None:
            assert len(self.lease) == self.num_blocks
            assert self.num_computed <= self.num_blocks * block_size_tokens
