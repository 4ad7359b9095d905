"""Two turns whose greedy answers `transformers` gave: whatever the cluster, they are the same.

The second turn repeats a prompt with the first tokens of its answer, and must go on as the first
one did: that is where cached, moved, evicted and swapped KV would show.
"""

from concurrent.futures import ThreadPoolExecutor

from memserve_jax.client import Client
from tests.helpers.goldens import Golden

PATIENCE_S = 120.0  # far more than anything on a tiny model takes
LENGTHS = (16, 17, 90, 333)
TURN_TOKENS = 11  # of the first answer that the second prompt repeats

Asked = list[tuple[list[int], list[int]]]  # prompt, answer wanted


def golden_turns(golden: Golden) -> tuple[Asked, Asked]:
    """Returns what is asked in the first turn, and in the second."""
    known = {
        len(prompt): (prompt, answer)
        for prompt, answer in zip(golden.prompts, golden.tokens, strict=True)
    }
    turns = [known[length] for length in LENGTHS]
    later = [(prompt + answer[:TURN_TOKENS], answer[TURN_TOKENS:]) for prompt, answer in turns]
    return turns, later


def check_golden_turns(client: Client, golden: Golden, *, salt: str = "") -> None:
    """Asserts that all answers of both turns are the golden ones, each turn asked all at once."""
    for asked in golden_turns(golden):
        assert ask_at_once(client, asked, salt=salt) == [answer for _, answer in asked]


def ask_at_once(client: Client, asked: Asked, *, salt: str = "") -> list[list[int]]:
    """Returns the greedy answers, as long as wanted."""

    def ask(pair: tuple[list[int], list[int]]) -> list[int]:
        prompt, wanted = pair
        answer = client.generate(
            token_ids=prompt,
            max_tokens=len(wanted),
            temperature=0.0,
            ignore_eos=True,
            cache_salt=salt,
            timeout_s=PATIENCE_S,
        )
        return list(answer.token_ids)

    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(ask, asked))
