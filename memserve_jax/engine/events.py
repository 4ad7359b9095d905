"""What an engine tells its instance. Plain data; each event names its request."""

from dataclasses import dataclass

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import FinishReason, RequestId, Usage


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The likeliest tokens at one position, best first."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the raw logits: before penalties and temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """New tokens of an answer. The last one of a request has `finish_reason` and `usage`.

    `cancel` ends with one too: no tokens, CANCELLED.
    """

    request_id: RequestId
    first_index: int  # position in the answer of token_ids[0]
    token_ids: tuple[int, ...]
    text: str  # new whole characters; may lag the ids, may come without ids
    logprobs: tuple[float, ...] | None = None  # one per token, where asked for
    top_logprobs: tuple[TopLogprobs, ...] | None = None  # one per token, where asked for > 0
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    queue_s: float | None = None  # with the first token here: arrival to first computed
    cached_tokens: int | None = None  # with the first token here: as `usage` will have it


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """What a prefill instance sampled. If `finish_reason` is set no KV follows."""

    request_id: RequestId
    token_id: int
    seed: int  # the seed drawn, so that the decode side goes on with it
    cached_tokens: int
    queue_s: float
    logprob: float | None = None
    top_logprobs: TopLogprobs | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillDone:
    """The KV of a prefilled request is on its decode instance; nothing is left here.

    Follows every `FirstToken` without a finish reason, unless `Failed` does. After a `FirstToken`
    that ends the answer it follows at once, with zeros.
    """

    request_id: RequestId
    kv_blocks_moved: int
    kv_bytes_moved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A request ended by an error; everything it held is released."""

    request_id: RequestId
    error: MemServeError


Event = Tokens | FirstToken | PrefillDone | Failed
