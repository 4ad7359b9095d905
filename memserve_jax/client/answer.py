"""What comes back: pieces of an answer, and the whole."""

from collections.abc import Iterable
from dataclasses import dataclass

from memserve_jax.client.errors import ClientError
from memserve_jax.core.types import FinishReason, Timing, Usage
from memserve_jax.proto import convert
from memserve_jax.proto import memserve_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One message of a stream. The last one alone has a reason, usage and timing."""

    request_id: str
    first_index: int  # position in the answer of token_ids[0]
    token_ids: tuple[int, ...]
    text: str  # new whole characters
    logprobs: tuple[float, ...] = ()  # of token_ids, where asked for
    top_logprobs: tuple[dict[int, float], ...] = ()  # token id -> logprob, one dict a token
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timing: Timing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[dict[int, float], ...] = ()


def to_chunk(message: pb.GenerateResponse) -> Chunk:
    """Returns `message` in plain Python values."""
    return Chunk(
        request_id=message.request_id,
        first_index=message.first_index,
        token_ids=tuple(message.token_ids),
        text=message.text,
        logprobs=tuple(message.logprobs),
        top_logprobs=tuple(
            dict(zip(top.token_ids, top.logprobs, strict=True)) for top in message.top_logprobs
        ),
        finish_reason=convert.reason_from_message(message.finish_reason),
        usage=convert.usage_from_message(message.usage) if message.HasField("usage") else None,
        timing=convert.timing_from_message(message.timing) if message.HasField("timing") else None,
    )


def join(chunks: Iterable[Chunk]) -> Answer:
    """Returns the answer that `chunks`, in order, make up.

    Raises:
      ClientError: DATA_LOSS: tokens are missing or twice there, or the end never came.
    """
    token_ids: list[int] = []
    logprobs: list[float] = []
    top_logprobs: list[dict[int, float]] = []
    text: list[str] = []
    last = None
    for chunk in chunks:
        if chunk.token_ids and chunk.first_index != len(token_ids):
            raise ClientError(
                "DATA_LOSS", f"wanted token {len(token_ids)} next, got {chunk.first_index}"
            )
        token_ids += chunk.token_ids
        logprobs += chunk.logprobs
        top_logprobs += chunk.top_logprobs
        text.append(chunk.text)
        last = chunk
    if last is None or last.finish_reason is None:
        raise ClientError("DATA_LOSS", f"the stream broke off after {len(token_ids)} tokens")
    return Answer(
        request_id=last.request_id,
        token_ids=tuple(token_ids),
        text="".join(text),
        finish_reason=last.finish_reason,
        usage=last.usage or Usage(prompt_tokens=0, cached_tokens=0, completion_tokens=0),
        timing=last.timing or Timing(),
        logprobs=tuple(logprobs),
        top_logprobs=tuple(top_logprobs),
    )
