"""Wire messages to core words and back. Every check of a request is here.

Errors name the proto field (`sampling.max_tokens`), the value and what is allowed.
"""

import dataclasses
import math
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.core.types import (
    FetchSource,
    FinishReason,
    InstanceId,
    Request,
    RequestId,
    SamplingParams,
    Timing,
    Usage,
)
from memserve_jax.proto import memserve_pb2 as pb

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_PRIORITY = 1000  # as many below 0: of all possible ones, those that somebody means
MAX_STOP_CHARACTERS = 1024  # of each
MAX_STOP_TOKENS = 1024
MAX_CHAT_MESSAGES = 4096
MAX_KEY_CHARACTERS = 256  # of session_id and cache_salt

ATTEMPT = "~"  # between a request's id and the number of an attempt after the first

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_REASON_TO_MESSAGE = {
    FinishReason.STOP: pb.STOP,
    FinishReason.LENGTH: pb.LENGTH,
    FinishReason.CANCELLED: pb.CANCELLED,
}
_REASON_FROM_MESSAGE = {number: reason for reason, number in _REASON_TO_MESSAGE.items()}
_TINY = math.nextafter(0.0, 1.0)
_RANGES: dict[str, tuple[float, float, str]] = {  # sampling field -> lowest, highest, in words
    "max_tokens": (1.0, math.inf, ">= 1"),
    "temperature": (0.0, math.inf, "a finite number >= 0 (0 is greedy)"),
    "top_k": (0.0, math.inf, ">= 0 (0 keeps all)"),
    "top_p": (_TINY, 1.0, "0 < top_p <= 1"),
    "min_p": (0.0, 1.0, "0 to 1"),
    "repetition_penalty": (_TINY, math.inf, "a finite number > 0"),
    "presence_penalty": (-2.0, 2.0, "-2 to 2"),
    "frequency_penalty": (-2.0, 2.0, "-2 to 2"),
    "logprobs": (0.0, float(MAX_LOGPROBS), f"0 to {MAX_LOGPROBS}"),
}
_PRESENT = (*_RANGES, "seed", "ignore_eos")  # sampling fields that may be unset


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the cluster can hold, beside what the model can."""

    max_context_tokens: int  # prompt and answer together
    max_kv_tokens: int | None = None  # KV of one request in the smallest pool; None: no limit
    max_prompt_bytes: int | None = None  # of a text or of all of a chat, in UTF-8; None: no limit

    @property
    def context_tokens(self) -> int:
        """The smaller of the two: prompt and answer together stay within it."""
        if self.max_kv_tokens is None:
            return self.max_context_tokens
        return min(self.max_context_tokens, self.max_kv_tokens)


def to_request(
    message: pb.GenerateRequest,
    *,
    card: ModelCard,
    tokenizer: Tokenizer,
    limits: Limits,
    now_s: float,
) -> Request:
    """Returns `message` tokenised, with defaults filled in and `max_tokens` clamped.

    Args:
      message: From a client, or from a scheduler (token ids, nothing unset).
      card: The model's ids and sampling defaults.
      tokenizer: The model's.
      limits: What fits.
      now_s: The arrival, on the clock of this process.

    Raises:
      InvalidRequestError: a field out of range, a prompt that is absent, empty or too long.
    """
    request_id = message.request_id or uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestError(
            "request_id", _short(request_id), "1 to 128 of A-Z a-z 0-9 . _ : - (or empty)"
        )
    for field in ("session_id", "cache_salt"):
        value = getattr(message, field)
        if len(value) > MAX_KEY_CHARACTERS:
            raise InvalidRequestError(
                field, f"{len(value)} characters", f"at most {MAX_KEY_CHARACTERS} characters"
            )
    if not -MAX_PRIORITY <= message.priority <= MAX_PRIORITY:
        raise InvalidRequestError(
            "priority", message.priority, f"-{MAX_PRIORITY} to {MAX_PRIORITY}"
        )
    if message.sampling.stop and not tokenizer.has_text:
        raise InvalidRequestError(
            "sampling.stop",
            f"{len(message.sampling.stop)} strings",
            "stop_token_ids: this model directory has no tokenizer",
        )
    prompt = _prompt(message, card, tokenizer, limits)
    sampling = _sampling(message.sampling, card, limits.context_tokens - len(prompt))
    return Request(
        request_id=attempt_id(request_id, message.resume.attempt),
        session_id=message.session_id,
        prompt_token_ids=prompt,
        resumed_token_ids=_resumed(message.resume, card, sampling),
        sampling=sampling,
        cache_salt=message.cache_salt,
        priority=message.priority,
        fetch=_fetch_source(message.route),
        arrival_s=now_s,
    )


def _fetch_source(route: pb.RouteInfo) -> FetchSource | None:
    if not route.fetch_instance:
        return None
    return FetchSource(InstanceId(route.fetch_instance), route.fetch_tokens)


def to_message(request: Request, route: pb.RouteInfo | None = None) -> pb.GenerateRequest:
    """Returns `request` as sent to an instance: token ids, every sampling field set."""
    sampling = request.sampling
    message = pb.GenerateRequest(
        request_id=client_id(request.request_id),
        session_id=request.session_id,
        token_ids=pb.TokenIds(ids=request.prompt_token_ids),
        sampling=pb.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=sampling.seed,
            stop=sampling.stop,
            stop_token_ids=sorted(sampling.stop_token_ids),
            ignore_eos=sampling.ignore_eos,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logprobs=sampling.logprobs,
        ),
        cache_salt=request.cache_salt,
        priority=request.priority,
    )
    if route is not None:
        message.route.CopyFrom(route)
    attempt = attempt_of(request.request_id)
    if attempt or request.resumed_token_ids:
        resume = pb.Resume(token_ids=request.resumed_token_ids, attempt=attempt)
        message.resume.CopyFrom(resume)
    return message


def attempt_id(request_id: str, attempt: int) -> RequestId:
    """Returns what attempt number `attempt` (0: the first) at a client's request is called.

    An instance may still hold an earlier attempt: no client's id looks like one of a later.
    """
    return RequestId(f"{request_id}{ATTEMPT}{attempt}" if attempt else request_id)


def client_id(request_id: str) -> str:
    """Returns the request's id as its client knows it, whichever attempt this is."""
    return request_id.partition(ATTEMPT)[0]


def attempt_of(request_id: str) -> int:
    """Returns the number of the attempt that is called so."""
    return int(request_id.partition(ATTEMPT)[2] or 0)


def checked_seconds(field: str, seconds: float) -> float:
    """Returns a time-out from the wire.

    Raises:
      InvalidRequestError: one that never ends, or that is none.
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InvalidRequestError(field, seconds, "a finite number of seconds >= 0")
    return seconds


def reason_to_message(reason: FinishReason | None) -> Any:  # an enum, which beartype cannot read
    """Returns the wire's word for `reason`; None is unspecified."""
    return pb.FINISH_REASON_UNSPECIFIED if reason is None else _REASON_TO_MESSAGE[reason]


def reason_from_message(number: int) -> FinishReason | None:
    """Returns the reason; None for unspecified, and for one this version does not know."""
    return _REASON_FROM_MESSAGE.get(number)  # type: ignore[arg-type]


def usage_to_message(usage: Usage) -> pb.Usage:
    """Returns `usage` for the wire."""
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
    )


def usage_from_message(message: pb.Usage) -> Usage:
    """Returns the usage in `message`."""
    return Usage(
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        completion_tokens=message.completion_tokens,
    )


def timing_to_message(timing: Timing) -> pb.Timing:
    """Returns `timing` for the wire."""
    return pb.Timing(
        queue_s=timing.queue_s,
        ttft_s=timing.ttft_s,
        jct_s=timing.jct_s,
        prefill_instance=timing.prefill_instance,
        decode_instance=timing.decode_instance,
        kv_blocks_moved=timing.kv_blocks_moved,
        kv_bytes_moved=timing.kv_bytes_moved,
    )


def timing_from_message(message: pb.Timing) -> Timing:
    """Returns the timing in `message`."""
    return Timing(
        queue_s=message.queue_s,
        ttft_s=message.ttft_s,
        jct_s=message.jct_s,
        prefill_instance=message.prefill_instance,
        decode_instance=message.decode_instance,
        kv_blocks_moved=message.kv_blocks_moved,
        kv_bytes_moved=message.kv_bytes_moved,
    )


def _prompt(
    message: pb.GenerateRequest, card: ModelCard, tokenizer: Tokenizer, limits: Limits
) -> tuple[int, ...]:
    field = message.WhichOneof("prompt")
    match field:
        case "text":
            if not message.text:
                raise InvalidRequestError("text", "", "a prompt that is not empty")
            _check_size("text", [message.text], limits)
            prompt = tokenizer.encode(message.text)
        case "token_ids":
            _check_length("token_ids", len(message.token_ids.ids), limits)
            prompt = list(message.token_ids.ids)
            _check_tokens(prompt, "token_ids", card.vocab_size)
        case "chat":
            prompt = tokenizer.encode_chat(_chat(message.chat, limits))
        case _:
            raise InvalidRequestError("prompt", "nothing", "one of text, token_ids, chat")
    if not prompt:
        raise InvalidRequestError(field, "0 tokens", "a prompt of at least 1 token")
    _check_length(field, len(prompt), limits)
    if field != "token_ids":
        _check_tokens(prompt, field, card.vocab_size)
    return tuple(prompt)


def _resumed(message: pb.Resume, card: ModelCard, sampling: SamplingParams) -> tuple[int, ...]:
    token_ids = tuple(message.token_ids)
    _check_tokens(token_ids, "resume.token_ids", card.vocab_size)
    if token_ids and len(token_ids) >= sampling.max_tokens:
        allowed = f"fewer than max_tokens, {sampling.max_tokens}"
        raise InvalidRequestError("resume.token_ids", f"{len(token_ids)} tokens", allowed)
    return token_ids


def _check_length(field: str, num_tokens: int, limits: Limits) -> None:
    if num_tokens >= limits.max_context_tokens:
        allowed = (
            f"at most {limits.max_context_tokens - 1} tokens: "
            f"the context of {limits.max_context_tokens} less one for the answer"
        )
        raise InvalidRequestError(field, f"{num_tokens} tokens", allowed)
    if num_tokens >= limits.context_tokens:
        allowed = f"at most {limits.context_tokens - 1} tokens: what the KV pool can hold"
        raise InvalidRequestError(field, f"{num_tokens} tokens", allowed)


def _check_size(field: str, texts: Sequence[str], limits: Limits) -> None:
    if limits.max_prompt_bytes is None:
        return
    num_bytes = sum(len(text.encode()) for text in texts)
    if num_bytes > limits.max_prompt_bytes:
        raise InvalidRequestError(
            field, f"{num_bytes} bytes", f"at most {limits.max_prompt_bytes} bytes"
        )


def _chat(chat: pb.ChatMessages, limits: Limits) -> list[dict[str, str]]:
    if not 0 < len(chat.messages) <= MAX_CHAT_MESSAGES:
        raise InvalidRequestError(
            "chat.messages", f"{len(chat.messages)} messages", f"1 to {MAX_CHAT_MESSAGES} messages"
        )
    _check_size(
        "chat", [text for each in chat.messages for text in (each.role, each.content)], limits
    )
    for index, message in enumerate(chat.messages):
        if not message.role:
            raise InvalidRequestError(
                f"chat.messages[{index}].role", "", "system, user, assistant or the model's own"
            )
    return [{"role": message.role, "content": message.content} for message in chat.messages]


def _check_tokens(token_ids: Sequence[int], field: str, vocab_size: int) -> None:
    for index, token in enumerate(token_ids):
        if token >= vocab_size:
            raise InvalidRequestError(f"{field}[{index}]", token, f"0 to {vocab_size - 1}")


def _sampling(message: pb.SamplingParams, card: ModelCard, room: int) -> SamplingParams:
    """Returns the sampling of a request that has `room` tokens of context left."""
    for field, (low, high, allowed) in _RANGES.items():
        value = getattr(message, field)
        if message.HasField(field) and not (math.isfinite(value) and low <= value <= high):
            raise InvalidRequestError(f"sampling.{field}", value, allowed)
    _check_stops(message, card.vocab_size)
    given = {field: getattr(message, field) for field in _PRESENT if message.HasField(field)}
    sampling = dataclasses.replace(
        card.sampling,
        stop=tuple(message.stop),
        stop_token_ids=frozenset(message.stop_token_ids),
        **given,
    )
    return dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, room))


def _check_stops(message: pb.SamplingParams, vocab_size: int) -> None:
    if len(message.stop) > MAX_STOP_STRINGS:
        raise InvalidRequestError(
            "sampling.stop", f"{len(message.stop)} strings", f"at most {MAX_STOP_STRINGS}"
        )
    for index, text in enumerate(message.stop):
        if not text:
            raise InvalidRequestError(f"sampling.stop[{index}]", "", "a string that is not empty")
        if len(text) > MAX_STOP_CHARACTERS:
            raise InvalidRequestError(
                f"sampling.stop[{index}]",
                f"{len(text)} characters",
                f"at most {MAX_STOP_CHARACTERS} characters",
            )
    if len(message.stop_token_ids) > MAX_STOP_TOKENS:
        raise InvalidRequestError(
            "sampling.stop_token_ids",
            f"{len(message.stop_token_ids)} tokens",
            f"at most {MAX_STOP_TOKENS} tokens",
        )
    _check_tokens(message.stop_token_ids, "sampling.stop_token_ids", vocab_size)


def _short(text: str) -> str:
    return text if len(text) <= 140 else f"{text[:137]}..."
