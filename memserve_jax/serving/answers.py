"""Engine events as wire messages: of an answer, and of a prefill."""

from memserve_jax.core.types import InstanceId, RequestId
from memserve_jax.engine.events import FirstToken, PrefillDone, Tokens, TopLogprobs
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import client_id, reason_from_message, reason_to_message


class AnswerTiming:
    """The seconds of one answer, by the clock of the instance that streams it."""

    def __init__(self, *, arrival_s: float, prefill: InstanceId, decode: InstanceId):
        self._arrival_s = arrival_s
        self._prefill = prefill
        self._decode = decode
        self._first_s: float | None = None  # when the first token came
        self._queue_s = 0.0
        self.moved: PrefillDone | None = None  # what came by transfer, once it has

    @property
    def first_s(self) -> float | None:
        """When the first token came; None before."""
        return self._first_s

    def saw(self, tokens: Tokens, now_s: float) -> None:
        """Takes note of new tokens."""
        if self._first_s is None and tokens.token_ids:
            self._first_s = now_s
        if tokens.queue_s is not None:
            self._queue_s = tokens.queue_s

    def to_message(self, now_s: float) -> pb.Timing:
        """Returns the timing of an answer that ends now."""
        first_s = now_s if self._first_s is None else self._first_s
        return pb.Timing(
            queue_s=self._queue_s,
            ttft_s=first_s - self._arrival_s,
            jct_s=now_s - self._arrival_s,
            prefill_instance=self._prefill,
            decode_instance=self._decode,
            kv_blocks_moved=self.moved.kv_blocks_moved if self.moved else 0,
            kv_bytes_moved=self.moved.kv_bytes_moved if self.moved else 0,
        )


def tokens_to_message(tokens: Tokens) -> pb.GenerateResponse:
    """Returns `tokens` for the wire, without timing."""
    message = pb.GenerateResponse(
        request_id=client_id(tokens.request_id),
        token_ids=tokens.token_ids,
        first_index=tokens.first_index,
        logprobs=tokens.logprobs or (),
        text=tokens.text,
        finish_reason=reason_to_message(tokens.finish_reason),
        top_logprobs=[_top_to_message(top) for top in tokens.top_logprobs or ()],
    )
    if tokens.queue_s is not None:
        begun = pb.Begun(cached_tokens=tokens.cached_tokens, queue_s=tokens.queue_s)
        message.begun.CopyFrom(begun)
    if tokens.usage is not None:
        message.usage.CopyFrom(
            pb.Usage(
                prompt_tokens=tokens.usage.prompt_tokens,
                cached_tokens=tokens.usage.cached_tokens,
                completion_tokens=tokens.usage.completion_tokens,
            )
        )
    return message


def first_token_to_message(first: FirstToken) -> pb.PrefillEvent:
    """Returns `first` for the wire."""
    message = pb.PrefillFirstToken(
        token_id=first.token_id,
        logprob=first.logprob,
        finish_reason=reason_to_message(first.finish_reason),
        cached_tokens=first.cached_tokens,
        queue_s=first.queue_s,
        seed=first.seed,
    )
    if first.top_logprobs is not None:
        message.top_logprobs.CopyFrom(_top_to_message(first.top_logprobs))
    return pb.PrefillEvent(first_token=message)


def first_token_from_message(message: pb.PrefillFirstToken, request_id: RequestId) -> FirstToken:
    """Returns the first token of `request_id` in `message`."""
    top = None
    if message.HasField("top_logprobs"):
        top = TopLogprobs(
            tuple(message.top_logprobs.token_ids), tuple(message.top_logprobs.logprobs)
        )
    return FirstToken(
        request_id=request_id,
        token_id=message.token_id,
        seed=message.seed,
        cached_tokens=message.cached_tokens,
        queue_s=message.queue_s,
        logprob=message.logprob if message.HasField("logprob") else None,
        top_logprobs=top,
        finish_reason=reason_from_message(message.finish_reason),
    )


def prefill_done_to_message(done: PrefillDone) -> pb.PrefillEvent:
    """Returns `done` for the wire."""
    return pb.PrefillEvent(
        done=pb.PrefillDone(
            kv_blocks_moved=done.kv_blocks_moved, kv_bytes_moved=done.kv_bytes_moved
        )
    )


def prefill_done_from_message(message: pb.PrefillDone, request_id: RequestId) -> PrefillDone:
    """Returns the end of `request_id`'s prefill in `message`."""
    return PrefillDone(
        request_id=request_id,
        kv_blocks_moved=message.kv_blocks_moved,
        kv_bytes_moved=message.kv_bytes_moved,
    )


def _top_to_message(top: TopLogprobs) -> pb.TopLogprobs:
    return pb.TopLogprobs(token_ids=top.token_ids, logprobs=top.logprobs)
