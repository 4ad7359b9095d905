from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    STOP: _ClassVar[FinishReason]
    LENGTH: _ClassVar[FinishReason]
    CANCELLED: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
STOP: FinishReason
LENGTH: FinishReason
CANCELLED: FinishReason

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class ChatMessages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "repetition_penalty", "presence_penalty", "frequency_penalty", "logprobs")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: bool = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logprobs: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "session_id", "text", "token_ids", "chat", "sampling", "cache_salt", "priority", "route", "resume")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    session_id: str
    text: str
    token_ids: TokenIds
    chat: ChatMessages
    sampling: SamplingParams
    cache_salt: str
    priority: int
    route: RouteInfo
    resume: Resume
    def __init__(self, request_id: _Optional[str] = ..., session_id: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[ChatMessages, _Mapping]] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., cache_salt: _Optional[str] = ..., priority: _Optional[int] = ..., route: _Optional[_Union[RouteInfo, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("token_ids", "attempt")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    attempt: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., attempt: _Optional[int] = ...) -> None: ...

class RouteInfo(_message.Message):
    __slots__ = ("prefill_instance", "prefill_target", "decode_instance", "decode_target", "cached_tokens", "reason", "fetch_instance", "fetch_target", "fetch_tokens", "seal")
    PREFILL_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TARGET_FIELD_NUMBER: _ClassVar[int]
    DECODE_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    DECODE_TARGET_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FETCH_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    FETCH_TARGET_FIELD_NUMBER: _ClassVar[int]
    FETCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    prefill_instance: str
    prefill_target: str
    decode_instance: str
    decode_target: str
    cached_tokens: int
    reason: str
    fetch_instance: str
    fetch_target: str
    fetch_tokens: int
    seal: bytes
    def __init__(self, prefill_instance: _Optional[str] = ..., prefill_target: _Optional[str] = ..., decode_instance: _Optional[str] = ..., decode_target: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., reason: _Optional[str] = ..., fetch_instance: _Optional[str] = ..., fetch_target: _Optional[str] = ..., fetch_tokens: _Optional[int] = ..., seal: _Optional[bytes] = ...) -> None: ...

class RouteResponse(_message.Message):
    __slots__ = ("target", "route")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    target: str
    route: RouteInfo
    def __init__(self, target: _Optional[str] = ..., route: _Optional[_Union[RouteInfo, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "cached_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_s", "ttft_s", "jct_s", "prefill_instance", "decode_instance", "kv_blocks_moved", "kv_bytes_moved")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    JCT_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    DECODE_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_MOVED_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_MOVED_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    ttft_s: float
    jct_s: float
    prefill_instance: str
    decode_instance: str
    kv_blocks_moved: int
    kv_bytes_moved: int
    def __init__(self, queue_s: _Optional[float] = ..., ttft_s: _Optional[float] = ..., jct_s: _Optional[float] = ..., prefill_instance: _Optional[str] = ..., decode_instance: _Optional[str] = ..., kv_blocks_moved: _Optional[int] = ..., kv_bytes_moved: _Optional[int] = ...) -> None: ...

class TopLogprobs(_message.Message):
    __slots__ = ("token_ids", "logprobs")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("request_id", "token_ids", "first_index", "logprobs", "text", "finish_reason", "usage", "timing", "top_logprobs", "begun")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    first_index: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    text: str
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TopLogprobs]
    begun: Begun
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., first_index: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., top_logprobs: _Optional[_Iterable[_Union[TopLogprobs, _Mapping]]] = ..., begun: _Optional[_Union[Begun, _Mapping]] = ...) -> None: ...

class Begun(_message.Message):
    __slots__ = ("cached_tokens", "queue_s")
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    cached_tokens: int
    queue_s: float
    def __init__(self, cached_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("request", "decode_instance", "decode_target", "decode_epoch")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    DECODE_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    DECODE_TARGET_FIELD_NUMBER: _ClassVar[int]
    DECODE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    request: GenerateRequest
    decode_instance: str
    decode_target: str
    decode_epoch: int
    def __init__(self, request: _Optional[_Union[GenerateRequest, _Mapping]] = ..., decode_instance: _Optional[str] = ..., decode_target: _Optional[str] = ..., decode_epoch: _Optional[int] = ...) -> None: ...

class PrefillEvent(_message.Message):
    __slots__ = ("first_token", "done")
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    first_token: PrefillFirstToken
    done: PrefillDone
    def __init__(self, first_token: _Optional[_Union[PrefillFirstToken, _Mapping]] = ..., done: _Optional[_Union[PrefillDone, _Mapping]] = ...) -> None: ...

class PrefillFirstToken(_message.Message):
    __slots__ = ("token_id", "logprob", "top_logprobs", "finish_reason", "cached_tokens", "queue_s", "seed")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    top_logprobs: TopLogprobs
    finish_reason: FinishReason
    cached_tokens: int
    queue_s: float
    seed: int
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top_logprobs: _Optional[_Union[TopLogprobs, _Mapping]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., cached_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class PrefillDone(_message.Message):
    __slots__ = ("kv_blocks_moved", "kv_bytes_moved")
    KV_BLOCKS_MOVED_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_MOVED_FIELD_NUMBER: _ClassVar[int]
    kv_blocks_moved: int
    kv_bytes_moved: int
    def __init__(self, kv_blocks_moved: _Optional[int] = ..., kv_bytes_moved: _Optional[int] = ...) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("transfer_id", "sender", "sender_epoch", "receiver_epoch", "cache_salt", "token_ids", "first_block", "num_blocks", "insert", "may_wait", "private", "extra_blocks", "timeout_s", "into", "tier")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SENDER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    INSERT_FIELD_NUMBER: _ClassVar[int]
    MAY_WAIT_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    EXTRA_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    INTO_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    sender: str
    sender_epoch: int
    receiver_epoch: int
    cache_salt: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    first_block: int
    num_blocks: int
    insert: bool
    may_wait: bool
    private: bytes
    extra_blocks: int
    timeout_s: float
    into: str
    tier: str
    def __init__(self, transfer_id: _Optional[str] = ..., sender: _Optional[str] = ..., sender_epoch: _Optional[int] = ..., receiver_epoch: _Optional[int] = ..., cache_salt: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., first_block: _Optional[int] = ..., num_blocks: _Optional[int] = ..., insert: bool = ..., may_wait: bool = ..., private: _Optional[bytes] = ..., extra_blocks: _Optional[int] = ..., timeout_s: _Optional[float] = ..., into: _Optional[str] = ..., tier: _Optional[str] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("transport", "address")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    transport: str
    address: str
    def __init__(self, transport: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class ReserveReply(_message.Message):
    __slots__ = ("accepted", "refused_because", "num_held_blocks", "tensor_parallelism", "receiver_epoch", "blocks", "endpoints", "ticket")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    NUM_HELD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLELISM_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    refused_because: str
    num_held_blocks: int
    tensor_parallelism: int
    receiver_epoch: int
    blocks: _containers.RepeatedScalarFieldContainer[int]
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    ticket: bytes
    def __init__(self, accepted: bool = ..., refused_because: _Optional[str] = ..., num_held_blocks: _Optional[int] = ..., tensor_parallelism: _Optional[int] = ..., receiver_epoch: _Optional[int] = ..., blocks: _Optional[_Iterable[int]] = ..., endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., ticket: _Optional[bytes] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("first_block", "num_blocks", "first_layer", "num_layers", "first_side", "num_sides")
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SIDE_FIELD_NUMBER: _ClassVar[int]
    NUM_SIDES_FIELD_NUMBER: _ClassVar[int]
    first_block: int
    num_blocks: int
    first_layer: int
    num_layers: int
    first_side: int
    num_sides: int
    def __init__(self, first_block: _Optional[int] = ..., num_blocks: _Optional[int] = ..., first_layer: _Optional[int] = ..., num_layers: _Optional[int] = ..., first_side: _Optional[int] = ..., num_sides: _Optional[int] = ...) -> None: ...

class AnnounceRequest(_message.Message):
    __slots__ = ("transfer_id", "transport", "part", "address", "number", "detail")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    transport: str
    part: Part
    address: str
    number: int
    detail: bytes
    def __init__(self, transfer_id: _Optional[str] = ..., transport: _Optional[str] = ..., part: _Optional[_Union[Part, _Mapping]] = ..., address: _Optional[str] = ..., number: _Optional[int] = ..., detail: _Optional[bytes] = ...) -> None: ...

class AnnounceReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("requester", "requester_target", "requester_epoch", "owner_epoch", "token_ids", "cache_salt", "first_block", "timeout_s")
    REQUESTER_FIELD_NUMBER: _ClassVar[int]
    REQUESTER_TARGET_FIELD_NUMBER: _ClassVar[int]
    REQUESTER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    OWNER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    requester: str
    requester_target: str
    requester_epoch: int
    owner_epoch: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    cache_salt: str
    first_block: int
    timeout_s: float
    def __init__(self, requester: _Optional[str] = ..., requester_target: _Optional[str] = ..., requester_epoch: _Optional[int] = ..., owner_epoch: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., cache_salt: _Optional[str] = ..., first_block: _Optional[int] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class FetchReply(_message.Message):
    __slots__ = ("num_blocks", "num_bytes")
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    num_bytes: int
    def __init__(self, num_blocks: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("token_ids", "cache_salt", "unpin")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    UNPIN_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    cache_salt: str
    unpin: bool
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., cache_salt: _Optional[str] = ..., unpin: bool = ...) -> None: ...

class PinReply(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckReply(_message.Message):
    __slots__ = ("problem", "leased_blocks", "requests", "transfers", "reservations")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    RESERVATIONS_FIELD_NUMBER: _ClassVar[int]
    problem: str
    leased_blocks: int
    requests: int
    transfers: int
    reservations: int
    def __init__(self, problem: _Optional[str] = ..., leased_blocks: _Optional[int] = ..., requests: _Optional[int] = ..., transfers: _Optional[int] = ..., reservations: _Optional[int] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("transfer_id",)
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    def __init__(self, transfer_id: _Optional[str] = ...) -> None: ...

class CommitReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("transfer_id", "reason")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    reason: str
    def __init__(self, transfer_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class AbortReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TierStatus(_message.Message):
    __slots__ = ("tier", "num_blocks", "free_blocks", "leased_blocks", "indexed_blocks", "pinned_blocks")
    TIER_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    INDEXED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PINNED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    tier: str
    num_blocks: int
    free_blocks: int
    leased_blocks: int
    indexed_blocks: int
    pinned_blocks: int
    def __init__(self, tier: _Optional[str] = ..., num_blocks: _Optional[int] = ..., free_blocks: _Optional[int] = ..., leased_blocks: _Optional[int] = ..., indexed_blocks: _Optional[int] = ..., pinned_blocks: _Optional[int] = ...) -> None: ...

class InstanceStatus(_message.Message):
    __slots__ = ("instance", "epoch", "role", "state", "target", "model", "tensor_parallelism", "block_size_tokens", "caching", "tiers", "running", "waiting", "queued_prefill_tokens", "prefill_tokens_per_s", "max_context_tokens", "counters", "transports", "transfer_mode", "kernel_fallbacks", "max_running", "metrics_target")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLELISM_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHING_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_MODE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    METRICS_TARGET_FIELD_NUMBER: _ClassVar[int]
    instance: str
    epoch: int
    role: str
    state: str
    target: str
    model: str
    tensor_parallelism: int
    block_size_tokens: int
    caching: str
    tiers: _containers.RepeatedCompositeFieldContainer[TierStatus]
    running: int
    waiting: int
    queued_prefill_tokens: int
    prefill_tokens_per_s: float
    max_context_tokens: int
    counters: Counters
    transports: _containers.RepeatedCompositeFieldContainer[TransportStatus]
    transfer_mode: str
    kernel_fallbacks: _containers.RepeatedCompositeFieldContainer[KernelFallback]
    max_running: int
    metrics_target: str
    def __init__(self, instance: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., target: _Optional[str] = ..., model: _Optional[str] = ..., tensor_parallelism: _Optional[int] = ..., block_size_tokens: _Optional[int] = ..., caching: _Optional[str] = ..., tiers: _Optional[_Iterable[_Union[TierStatus, _Mapping]]] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., queued_prefill_tokens: _Optional[int] = ..., prefill_tokens_per_s: _Optional[float] = ..., max_context_tokens: _Optional[int] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ..., transports: _Optional[_Iterable[_Union[TransportStatus, _Mapping]]] = ..., transfer_mode: _Optional[str] = ..., kernel_fallbacks: _Optional[_Iterable[_Union[KernelFallback, _Mapping]]] = ..., max_running: _Optional[int] = ..., metrics_target: _Optional[str] = ...) -> None: ...

class KernelFallback(_message.Message):
    __slots__ = ("op", "reason", "traces")
    OP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    op: str
    reason: str
    traces: int
    def __init__(self, op: _Optional[str] = ..., reason: _Optional[str] = ..., traces: _Optional[int] = ...) -> None: ...

class TransportStatus(_message.Message):
    __slots__ = ("transport", "calls", "bytes", "seconds")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    transport: str
    calls: int
    bytes: int
    seconds: float
    def __init__(self, transport: _Optional[str] = ..., calls: _Optional[int] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Counters(_message.Message):
    __slots__ = ("requests", "prompt_tokens", "cached_tokens", "prefill_tokens_computed", "output_tokens", "kv_blocks_sent", "kv_bytes_sent", "kv_transfer_calls", "kv_blocks_received", "kv_send_backs", "kv_send_backs_dropped", "preemptions", "cancelled", "blocks_swapped_out", "blocks_swapped_in", "kv_transfer_s", "compiled_shapes", "kv_transfers_done", "kv_transfers_failed", "kv_reservations_refused", "kv_blocks_fetched", "kv_fetches_failed", "blocks_prefetched", "disk_blocks_written", "disk_blocks_read", "disk_blocks_refused", "kv_bytes_received", "disk_blocks_skipped", "kv_streams_aborted", "transfer_mode_switches", "kv_transfers_queued", "prefill_predicted_s", "prefill_actual_s", "kv_fetches_chosen", "kv_fetches_declined", "kv_fetch_predicted_s", "kv_fetch_actual_s", "kv_fetch_saved_s")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_SENT_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFER_CALLS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    KV_SEND_BACKS_FIELD_NUMBER: _ClassVar[int]
    KV_SEND_BACKS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_SWAPPED_OUT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_SWAPPED_IN_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    COMPILED_SHAPES_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFERS_DONE_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFERS_FAILED_FIELD_NUMBER: _ClassVar[int]
    KV_RESERVATIONS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FETCHED_FIELD_NUMBER: _ClassVar[int]
    KV_FETCHES_FAILED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_PREFETCHED_FIELD_NUMBER: _ClassVar[int]
    DISK_BLOCKS_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    DISK_BLOCKS_READ_FIELD_NUMBER: _ClassVar[int]
    DISK_BLOCKS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    DISK_BLOCKS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    KV_STREAMS_ABORTED_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_MODE_SWITCHES_FIELD_NUMBER: _ClassVar[int]
    KV_TRANSFERS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PREDICTED_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_ACTUAL_S_FIELD_NUMBER: _ClassVar[int]
    KV_FETCHES_CHOSEN_FIELD_NUMBER: _ClassVar[int]
    KV_FETCHES_DECLINED_FIELD_NUMBER: _ClassVar[int]
    KV_FETCH_PREDICTED_S_FIELD_NUMBER: _ClassVar[int]
    KV_FETCH_ACTUAL_S_FIELD_NUMBER: _ClassVar[int]
    KV_FETCH_SAVED_S_FIELD_NUMBER: _ClassVar[int]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    prefill_tokens_computed: int
    output_tokens: int
    kv_blocks_sent: int
    kv_bytes_sent: int
    kv_transfer_calls: int
    kv_blocks_received: int
    kv_send_backs: int
    kv_send_backs_dropped: int
    preemptions: int
    cancelled: int
    blocks_swapped_out: int
    blocks_swapped_in: int
    kv_transfer_s: float
    compiled_shapes: int
    kv_transfers_done: int
    kv_transfers_failed: int
    kv_reservations_refused: int
    kv_blocks_fetched: int
    kv_fetches_failed: int
    blocks_prefetched: int
    disk_blocks_written: int
    disk_blocks_read: int
    disk_blocks_refused: int
    kv_bytes_received: int
    disk_blocks_skipped: int
    kv_streams_aborted: int
    transfer_mode_switches: int
    kv_transfers_queued: int
    prefill_predicted_s: float
    prefill_actual_s: float
    kv_fetches_chosen: int
    kv_fetches_declined: int
    kv_fetch_predicted_s: float
    kv_fetch_actual_s: float
    kv_fetch_saved_s: float
    def __init__(self, requests: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., prefill_tokens_computed: _Optional[int] = ..., output_tokens: _Optional[int] = ..., kv_blocks_sent: _Optional[int] = ..., kv_bytes_sent: _Optional[int] = ..., kv_transfer_calls: _Optional[int] = ..., kv_blocks_received: _Optional[int] = ..., kv_send_backs: _Optional[int] = ..., kv_send_backs_dropped: _Optional[int] = ..., preemptions: _Optional[int] = ..., cancelled: _Optional[int] = ..., blocks_swapped_out: _Optional[int] = ..., blocks_swapped_in: _Optional[int] = ..., kv_transfer_s: _Optional[float] = ..., compiled_shapes: _Optional[int] = ..., kv_transfers_done: _Optional[int] = ..., kv_transfers_failed: _Optional[int] = ..., kv_reservations_refused: _Optional[int] = ..., kv_blocks_fetched: _Optional[int] = ..., kv_fetches_failed: _Optional[int] = ..., blocks_prefetched: _Optional[int] = ..., disk_blocks_written: _Optional[int] = ..., disk_blocks_read: _Optional[int] = ..., disk_blocks_refused: _Optional[int] = ..., kv_bytes_received: _Optional[int] = ..., disk_blocks_skipped: _Optional[int] = ..., kv_streams_aborted: _Optional[int] = ..., transfer_mode_switches: _Optional[int] = ..., kv_transfers_queued: _Optional[int] = ..., prefill_predicted_s: _Optional[float] = ..., prefill_actual_s: _Optional[float] = ..., kv_fetches_chosen: _Optional[int] = ..., kv_fetches_declined: _Optional[int] = ..., kv_fetch_predicted_s: _Optional[float] = ..., kv_fetch_actual_s: _Optional[float] = ..., kv_fetch_saved_s: _Optional[float] = ...) -> None: ...

class QuiesceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class QuiesceReply(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: int
    def __init__(self, leases: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("instance", "timeout_s", "force")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    timeout_s: float
    force: bool
    def __init__(self, instance: _Optional[str] = ..., timeout_s: _Optional[float] = ..., force: bool = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("instance",)
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    def __init__(self, instance: _Optional[str] = ...) -> None: ...

class SetRoleRequest(_message.Message):
    __slots__ = ("instance", "role", "caching", "timeout_s", "force")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CACHING_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    role: str
    caching: str
    timeout_s: float
    force: bool
    def __init__(self, instance: _Optional[str] = ..., role: _Optional[str] = ..., caching: _Optional[str] = ..., timeout_s: _Optional[float] = ..., force: bool = ...) -> None: ...

class SetRoleReply(_message.Message):
    __slots__ = ("instance", "role", "caching", "epoch")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CACHING_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    instance: str
    role: str
    caching: str
    epoch: int
    def __init__(self, instance: _Optional[str] = ..., role: _Optional[str] = ..., caching: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class ExplainReply(_message.Message):
    __slots__ = ("policy", "route", "why", "prompt_tokens", "instances")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    policy: str
    route: RouteInfo
    why: str
    prompt_tokens: int
    instances: _containers.RepeatedCompositeFieldContainer[ExplainedInstance]
    def __init__(self, policy: _Optional[str] = ..., route: _Optional[_Union[RouteInfo, _Mapping]] = ..., why: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., instances: _Optional[_Iterable[_Union[ExplainedInstance, _Mapping]]] = ...) -> None: ...

class ExplainedInstance(_message.Message):
    __slots__ = ("instance", "role", "state", "can_start", "cached_tokens", "queued_prefill_tokens", "queued_s", "prefill_s", "sequences", "indexed_blocks", "is_crowded")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CAN_START_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    INDEXED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    IS_CROWDED_FIELD_NUMBER: _ClassVar[int]
    instance: str
    role: str
    state: str
    can_start: bool
    cached_tokens: int
    queued_prefill_tokens: int
    queued_s: float
    prefill_s: float
    sequences: int
    indexed_blocks: int
    is_crowded: bool
    def __init__(self, instance: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., can_start: bool = ..., cached_tokens: _Optional[int] = ..., queued_prefill_tokens: _Optional[int] = ..., queued_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., sequences: _Optional[int] = ..., indexed_blocks: _Optional[int] = ..., is_crowded: bool = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: InstanceStatus
    def __init__(self, status: _Optional[_Union[InstanceStatus, _Mapping]] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("heartbeat_s", "wants_kv_events")
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    WANTS_KV_EVENTS_FIELD_NUMBER: _ClassVar[int]
    heartbeat_s: float
    wants_kv_events: bool
    def __init__(self, heartbeat_s: _Optional[float] = ..., wants_kv_events: bool = ...) -> None: ...

class KvEvent(_message.Message):
    __slots__ = ("tier", "stored", "removed")
    TIER_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    tier: str
    stored: bytes
    removed: bytes
    def __init__(self, tier: _Optional[str] = ..., stored: _Optional[bytes] = ..., removed: _Optional[bytes] = ...) -> None: ...

class KvUpdate(_message.Message):
    __slots__ = ("first_event", "events", "snapshot_part", "is_last_part")
    FIRST_EVENT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_PART_FIELD_NUMBER: _ClassVar[int]
    IS_LAST_PART_FIELD_NUMBER: _ClassVar[int]
    first_event: int
    events: _containers.RepeatedCompositeFieldContainer[KvEvent]
    snapshot_part: int
    is_last_part: bool
    def __init__(self, first_event: _Optional[int] = ..., events: _Optional[_Iterable[_Union[KvEvent, _Mapping]]] = ..., snapshot_part: _Optional[int] = ..., is_last_part: bool = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("status", "kv")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    status: InstanceStatus
    kv: KvUpdate
    def __init__(self, status: _Optional[_Union[InstanceStatus, _Mapping]] = ..., kv: _Optional[_Union[KvUpdate, _Mapping]] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("members", "is_complete", "wants_kv_snapshot")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    IS_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    WANTS_KV_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedScalarFieldContainer[str]
    is_complete: bool
    wants_kv_snapshot: bool
    def __init__(self, members: _Optional[_Iterable[str]] = ..., is_complete: bool = ..., wants_kv_snapshot: bool = ...) -> None: ...

class DeregisterRequest(_message.Message):
    __slots__ = ("instance", "epoch")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    instance: str
    epoch: int
    def __init__(self, instance: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class DeregisterReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterStatusReply(_message.Message):
    __slots__ = ("instances", "policy", "caching", "routed", "planner", "metrics_target")
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CACHING_FIELD_NUMBER: _ClassVar[int]
    ROUTED_FIELD_NUMBER: _ClassVar[int]
    PLANNER_FIELD_NUMBER: _ClassVar[int]
    METRICS_TARGET_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[InstanceStatus]
    policy: str
    caching: str
    routed: int
    planner: PlannerStatus
    metrics_target: str
    def __init__(self, instances: _Optional[_Iterable[_Union[InstanceStatus, _Mapping]]] = ..., policy: _Optional[str] = ..., caching: _Optional[str] = ..., routed: _Optional[int] = ..., planner: _Optional[_Union[PlannerStatus, _Mapping]] = ..., metrics_target: _Optional[str] = ...) -> None: ...

class PlannerStatus(_message.Message):
    __slots__ = ("verdict", "why", "prefill_wait_s", "decode_wait_s", "prefill_usage", "decode_usage", "moves", "moves_failed", "last_move")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_USAGE_FIELD_NUMBER: _ClassVar[int]
    DECODE_USAGE_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    MOVES_FAILED_FIELD_NUMBER: _ClassVar[int]
    LAST_MOVE_FIELD_NUMBER: _ClassVar[int]
    verdict: str
    why: str
    prefill_wait_s: float
    decode_wait_s: float
    prefill_usage: float
    decode_usage: float
    moves: int
    moves_failed: int
    last_move: str
    def __init__(self, verdict: _Optional[str] = ..., why: _Optional[str] = ..., prefill_wait_s: _Optional[float] = ..., decode_wait_s: _Optional[float] = ..., prefill_usage: _Optional[float] = ..., decode_usage: _Optional[float] = ..., moves: _Optional[int] = ..., moves_failed: _Optional[int] = ..., last_move: _Optional[str] = ...) -> None: ...
