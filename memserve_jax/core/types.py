"""The words of the system. Plain data: no jax, no I/O, no behaviour beyond arithmetic."""

import enum
from dataclasses import dataclass, field
from typing import NewType

RequestId = NewType("RequestId", str)
InstanceId = NewType("InstanceId", str)
TransferId = NewType("TransferId", str)
BlockId = NewType("BlockId", int)  # also the page index: block i's KV lives in page i


class Role(enum.StrEnum):
    """What an instance does."""

    PREFILL = "prefill"
    DECODE = "decode"
    COLOCATED = "colocated"


class Tier(enum.StrEnum):
    """Where a block's bytes are."""

    HBM = "hbm"
    HOST = "host"
    DISK = "disk"


class CachingMode(enum.StrEnum):
    """What a cluster keeps and sends: MemServe table 4 (`off` and `on` are for colocated)."""

    OFF = "off"
    ON = "on"
    PD_BASIC = "pd_basic"
    PD_CACHING_1 = "pd_caching_1"
    PD_CACHING_2 = "pd_caching_2"
    PD_CACHING_3 = "pd_caching_3"

    @property
    def prefill_caches(self) -> bool:
        """Whether the instance that prefills matches and inserts prompts (step 2)."""
        return self not in (CachingMode.OFF, CachingMode.PD_BASIC)

    @property
    def decode_caches(self) -> bool:
        """Whether a decode instance indexes what arrives and what it decodes (steps 3, 4)."""
        return self in (CachingMode.ON, CachingMode.PD_CACHING_2, CachingMode.PD_CACHING_3)

    @property
    def sends_back(self) -> bool:
        """Whether decode-phase KV returns to the prefill instance (step 5)."""
        return self is CachingMode.PD_CACHING_3


class TransferMode(enum.StrEnum):
    """How a prompt's KV leaves the instance that computes it (paper section 5.2)."""

    BY_LAYER = "by_layer"  # layers of a chunk as soon as they are computed: one call a group
    BY_REQUEST = "by_request"  # after the prompt, each block of each layer by itself: 2L calls
    BY_REQUEST_AGGREGATED = "by_request_aggregated"  # after the prompt, in one call


class FinishReason(enum.StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class BlockAddress:
    """One block, named unambiguously across the cluster."""

    instance: InstanceId
    epoch: int  # changes when the instance restarts, so a stale address is refused
    tier: Tier
    block: BlockId


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to turn logits into tokens. Resolved: no field is unset."""

    max_tokens: int = 128
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None  # None: the engine draws one
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = field(default_factory=frozenset[int])
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None  # alternatives per token; 0 is the sampled one alone

    @property
    def has_penalties(self) -> bool:
        """Whether logits depend on which tokens came before, beyond the forward pass."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class FetchSource:
    """A peer that holds more of a prompt than the instance that will prefill it."""

    instance: InstanceId
    num_tokens: int  # it is believed to hold, from position 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked for, tokenised and resolved. Never changes."""

    request_id: RequestId
    session_id: str  # empty: none
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    cache_salt: str = ""
    priority: int = 0  # lower goes first
    arrival_s: float = 0.0  # monotonic clock of the process that accepted it
    fetch: FetchSource | None = None  # as the route says
    resumed_token_ids: tuple[int, ...] = ()  # of the answer: given before, by another attempt

    @property
    def given_token_ids(self) -> tuple[int, ...]:
        """What is known before anything is computed: the prompt, and the answer so far."""
        return self.prompt_token_ids + self.resumed_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request runs. For a colocated instance prefill and decode are the same."""

    prefill: InstanceId
    decode: InstanceId
    cached_tokens: int = 0  # what the policy expects `prefill` to hold
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, not computed by the prefill side
    completion_tokens: int  # stop tokens included


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the seconds of one request went, and who served it."""

    queue_s: float = 0.0
    ttft_s: float = 0.0
    jct_s: float = 0.0
    prefill_instance: str = ""
    decode_instance: str = ""
    kv_blocks_moved: int = 0
    kv_bytes_moved: int = 0
