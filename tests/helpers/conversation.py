"""A conversation, and what it costs in work and bytes under a caching mode (paper section 3).

Turn k has a prompt of n_k tokens and an answer of m_k; S is the block size. The next prompt is
the whole history and something new. The last token of an answer has no KV.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from memserve_jax.client import Answer, Client
from memserve_jax.core.types import CachingMode
from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.cluster import PATIENCE_S
from tests.helpers.goldens import load_golden

S = 16
TURNS = ((40, 12), (7, 20), (33, 9), (16, 16))  # new prompt tokens, answer tokens: no multiples
GOLDEN = load_golden("llama3")


@dataclass(frozen=True)
class Turn:
    """One turn, with what the instances did since the turn before."""

    num_prompt: int
    answer: Answer
    computed: int  # prompt tokens that prefill computed
    forth: int  # blocks prefill -> decode
    back: int  # blocks decode -> prefill
    returned: int  # send-backs


class Served(Protocol):
    """A cluster under test, in whatever processes."""

    @property
    def client(self) -> Client: ...

    def counters(self) -> Mapping[str, pb.Counters]: ...


def converse(served: Served, *, p: str, d: str, salt: str = "") -> list[Turn]:
    """Holds the conversation and counts after each turn, when all is quiet.

    Args:
      served: A cluster in which nobody else has talked with that salt.
      p: The prefill instance.
      d: The decode instance.
      salt: Of its cache.
    """
    words = iter(GOLDEN.prompts[-1])
    history: list[int] = []
    turns: list[Turn] = []
    before = served.counters()
    for num_new, num_answer in TURNS:
        prompt = history + [next(words) for _ in range(num_new)]
        answer = served.client.generate(
            token_ids=prompt,
            max_tokens=num_answer,
            temperature=0.0,
            ignore_eos=True,
            session_id="s",
            cache_salt=salt,
            timeout_s=PATIENCE_S,
        )
        after = served.counters()
        turns.append(
            Turn(
                num_prompt=len(prompt),
                answer=answer,
                computed=after[p].prefill_tokens_computed - before[p].prefill_tokens_computed,
                forth=after[p].kv_blocks_sent - before[p].kv_blocks_sent,
                back=after[d].kv_blocks_sent - before[d].kv_blocks_sent,
                returned=after[d].kv_send_backs - before[d].kv_send_backs,
            )
        )
        history, before = prompt + list(answer.token_ids), after
    return turns


def whole(num_tokens: int) -> int:
    """Blocks that so many tokens fill."""
    return num_tokens // S


def ceil(num_tokens: int) -> int:
    """Blocks that so many tokens need."""
    return -(-num_tokens // S)


def held_at_prefill(mode: CachingMode, last: Turn | None) -> int:
    """Tokens of the history that the prefill instance has KV of, in whole blocks."""
    if last is None or mode is CachingMode.PD_BASIC:
        return 0
    if mode is CachingMode.PD_CACHING_3:
        return whole(last.num_prompt + last.answer.usage.completion_tokens - 1) * S
    return whole(last.num_prompt) * S


def held_at_decode(mode: CachingMode, last: Turn | None) -> int:
    """Whole blocks of the history that the decode instance has."""
    if last is None or not mode.decode_caches:
        return 0
    return whole(last.num_prompt + last.answer.usage.completion_tokens - 1)


def check_turns(mode: CachingMode, turns: Sequence[Turn]) -> None:
    """Asserts the work and the bytes of every turn at a prefill and a decode instance."""
    last = None
    block_bytes = 2 * 2 * 2 * S * 16 * 4  # L, K and V, K heads, S, H, float32
    for turn in turns:
        cached = held_at_prefill(mode, last)
        assert turn.computed == turn.num_prompt - cached
        assert turn.answer.usage.cached_tokens == cached
        assert turn.forth == ceil(turn.num_prompt) - held_at_decode(mode, last)
        assert turn.answer.timing.kv_blocks_moved == turn.forth
        assert turn.answer.timing.kv_bytes_moved == turn.forth * block_bytes
        history = turn.num_prompt + turn.answer.usage.completion_tokens - 1
        returns = mode is CachingMode.PD_CACHING_3
        assert turn.back == (whole(history) - whole(turn.num_prompt) if returns else 0)
        assert turn.returned == int(returns and turn.back > 0)
        last = turn
