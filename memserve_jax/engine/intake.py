"""From a request to a sequence: limits, the length of the answer, the seed."""

import itertools
import secrets
from dataclasses import dataclass, field

from memserve_jax.core.clock import Clock
from memserve_jax.core.config import EngineSection
from memserve_jax.core.errors import ConfigError, InvalidRequestError
from memserve_jax.core.model_card import ModelCard
from memserve_jax.core.tokenizer import Tokenizer
from memserve_jax.core.types import InstanceId, Request
from memserve_jax.engine.output import Answer
from memserve_jax.engine.sampling import MAX_ALTERNATIVES
from memserve_jax.engine.sequence import Duty, Phase, Sequence

DEFAULT_MAX_CONTEXT_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one instance can serve."""

    model_context_tokens: int  # by the model and the config
    pool_blocks: int
    block_size_tokens: int

    @property
    def pool_context_tokens(self) -> int:
        """Tokens of prompt and answer the pool can hold: the last token has no KV."""
        return self.pool_blocks * self.block_size_tokens + 1

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer together, by all limits."""
        return min(self.model_context_tokens, self.pool_context_tokens)


def context_limit(config: EngineSection, card: ModelCard) -> int:
    """Returns the context the config gives, or the model's, at most 8192.

    Raises:
      ConfigError: the config asks for more than the model has.
    """
    if config.max_context_tokens is None:
        return min(card.max_context_tokens, DEFAULT_MAX_CONTEXT_TOKENS)
    if config.max_context_tokens > card.max_context_tokens:
        raise ConfigError(
            f"engine.max_context_tokens: got {config.max_context_tokens}, allowed: at most the "
            f"model's {card.max_context_tokens}"
        )
    return config.max_context_tokens


def limits_of(
    config: EngineSection, card: ModelCard, pool_blocks: int, block_size_tokens: int
) -> Limits:
    """Returns what an instance can serve. Raises as `context_limit`."""
    return Limits(
        model_context_tokens=context_limit(config, card),
        pool_blocks=pool_blocks,
        block_size_tokens=block_size_tokens,
    )


@dataclass(slots=True, kw_only=True)
class Intake:
    """Makes sequences, in order of arrival."""

    limits: Limits
    card: ModelCard
    tokenizer: Tokenizer
    clock: Clock
    _orders: itertools.count = field(default_factory=itertools.count)

    def sequence(self, request: Request, duty: Duty, peer: InstanceId | None) -> Sequence:
        """Returns a new sequence for `request`, in the phase its duty begins with.

        Raises:
          InvalidRequestError: it can never be served here; names the field.
        """
        self._validate(request)
        room = self.limits.model_context_tokens
        if duty is not Duty.PREFILL:  # the decode side's pool may be larger than this one
            room = self.limits.context_tokens
        answer = Answer(
            request.sampling,
            eos_token_ids=self.card.eos_token_ids,
            max_tokens=min(request.sampling.max_tokens, room - len(request.prompt_token_ids)),
            stream=self.tokenizer.text_stream(),
        )
        answer.resume(request.resumed_token_ids)
        seed = request.sampling.seed
        return Sequence(
            request=request,
            duty=duty,
            answer=answer,
            seed=secrets.randbits(64) if seed is None else seed,
            order=next(self._orders),
            arrival_s=self.clock.now_s(),
            peer=peer,
            phase=Phase.AWAITING_KV if duty is Duty.DECODE else Phase.WAITING,
            token_ids=list(request.given_token_ids),
        )

    def _validate(self, request: Request) -> None:
        given, sampling = request.given_token_ids, request.sampling
        num_tokens, limits = len(given), self.limits
        if not 0 < num_tokens < limits.model_context_tokens:
            raise InvalidRequestError(
                "prompt", f"{num_tokens} tokens", f"1 to {limits.model_context_tokens - 1} tokens"
            )
        num_blocks = -(-num_tokens // limits.block_size_tokens)
        if num_blocks > limits.pool_blocks:
            raise InvalidRequestError(
                "prompt",
                f"{num_tokens} tokens, {num_blocks} blocks",
                f"at most the pool's {limits.pool_blocks} blocks",
            )
        if not 0 <= min(given) <= max(given) < self.card.vocab_size:
            wrong = next(token for token in given if not 0 <= token < self.card.vocab_size)
            raise InvalidRequestError("token_ids.ids", wrong, f"0 to {self.card.vocab_size - 1}")
        if sampling.max_tokens < 1:
            raise InvalidRequestError("sampling.max_tokens", sampling.max_tokens, "at least 1")
        if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_ALTERNATIVES:
            raise InvalidRequestError(
                "sampling.logprobs", sampling.logprobs, f"0 to {MAX_ALTERNATIVES}"
            )
