"""Events, made from the sequences they tell of."""

from memserve_jax.core.types import FinishReason, Usage
from memserve_jax.engine.events import FirstToken, PrefillDone, Tokens
from memserve_jax.engine.output import Piece
from memserve_jax.engine.pipeline import NewToken
from memserve_jax.engine.sequence import Sequence


def grown(sequence: Sequence, token: NewToken, piece: Piece, index: int) -> Tokens:
    """Returns the event of an answer's token number `index`, after which `sequence` stands."""
    is_first = index == len(sequence.request.resumed_token_ids)
    return Tokens(
        request_id=sequence.request_id,
        first_index=index,
        token_ids=(token.token_id,),
        text=piece.text,
        logprobs=None if token.logprob is None else (token.logprob,),
        top_logprobs=None if token.top_logprobs is None else (token.top_logprobs,),
        finish_reason=piece.finish_reason,
        usage=None if piece.finish_reason is None else _usage(sequence),
        queue_s=sequence.queue_s if is_first else None,
        cached_tokens=_cached_tokens(sequence) if is_first else None,
    )


def ended(sequence: Sequence, reason: FinishReason) -> Tokens:
    """Returns the end of an answer without another token."""
    return Tokens(
        request_id=sequence.request_id,
        first_index=sequence.answer.num_tokens,
        token_ids=(),
        text="",
        finish_reason=reason,
        usage=_usage(sequence),
    )


def handed_over(
    sequence: Sequence, token: NewToken, finish_reason: FinishReason | None
) -> FirstToken:
    """Returns what a decode side must know to go on."""
    return FirstToken(
        request_id=sequence.request_id,
        token_id=token.token_id,
        seed=sequence.seed,
        cached_tokens=sequence.cached_tokens or 0,
        queue_s=sequence.queue_s or 0.0,
        logprob=token.logprob,
        top_logprobs=token.top_logprobs,
        finish_reason=finish_reason,
    )


def moved(sequence: Sequence, num_blocks: int, num_bytes: int) -> PrefillDone:
    """Returns the end of a prefill."""
    return PrefillDone(
        request_id=sequence.request_id, kv_blocks_moved=num_blocks, kv_bytes_moved=num_bytes
    )


def _cached_tokens(sequence: Sequence) -> int:
    """Of the prompt: what was answered before may have been cached as well."""
    return min(sequence.cached_tokens or 0, sequence.num_prompt)


def _usage(sequence: Sequence) -> Usage:
    return Usage(
        prompt_tokens=sequence.num_prompt,
        cached_tokens=_cached_tokens(sequence),
        completion_tokens=sequence.answer.num_tokens,
    )
