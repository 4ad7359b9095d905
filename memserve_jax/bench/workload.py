"""What clients ask for and when: sessions of turns, seeded and pure.

A workload is an endless or finite iterator of sessions; who sends them, and how fast, is
`load.py`'s business. The n-th session depends on the seed and on n alone, so a longer run
begins with the shorter one.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from memserve_jax.bench.lengths import Lengths
from memserve_jax.core.errors import ConfigError

FIRST_PLAIN_TOKEN = 3  # lower ids are padding and the like in most vocabularies


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTurn:
    """New prompt tokens, sent after all tokens of the turns before and their answers."""

    token_ids: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTurn:
    """New prompt text, sent after all text of the turns before and their answers."""

    text: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurn:
    """New messages; the server's chat template renders the whole conversation."""

    messages: tuple[Message, ...]
    output_tokens: int


Turn = TokenTurn | TextTurn | ChatTurn


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One conversation: a turn is sent once the turn before has been answered.

    All its turns are of one kind.
    """

    session_id: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWorkload:
    """Sessions of random tokens."""

    prompt_tokens: Lengths  # of a session's first prompt, shared prefix included
    output_tokens: Lengths
    turn_tokens: Lengths  # new prompt tokens of each later turn
    num_turns: int = 1
    shared_prefix_tokens: int = 0
    num_shared_prefixes: int = 1  # sessions take them in turn
    vocab_size: int = 256
    seed: int = 0

    def __post_init__(self):
        if self.prompt_tokens.least <= self.shared_prefix_tokens and self.shared_prefix_tokens:
            raise ConfigError(
                f"--shared-prefix-tokens: got {self.shared_prefix_tokens}, allowed: less than the"
                f" shortest of --prompt-tokens, {self.prompt_tokens.least}"
            )
        if self.vocab_size <= FIRST_PLAIN_TOKEN:
            raise ConfigError(
                f"--vocab-size: got {self.vocab_size}, allowed: more than {FIRST_PLAIN_TOKEN}"
            )

    def sessions(self) -> Iterator[Session]:
        """Yields sessions s0, s1, … without end."""
        prefixes = [
            self._random_tokens(self._random(1, prefix), self.shared_prefix_tokens)
            for prefix in range(self.num_shared_prefixes)
        ]
        for index in itertools.count():
            yield self._session(index, prefixes[index % self.num_shared_prefixes])

    def _session(self, index: int, prefix: tuple[int, ...]) -> Session:
        random = self._random(0, index)
        num_first = self.prompt_tokens.sample(random, least=len(prefix) + 1)
        turns = [
            TokenTurn(
                token_ids=prefix + self._random_tokens(random, num_first - len(prefix)),
                output_tokens=self.output_tokens.sample(random),
            )
        ]
        for _ in range(self.num_turns - 1):
            tokens = self._random_tokens(random, self.turn_tokens.sample(random))
            turns.append(
                TokenTurn(token_ids=tokens, output_tokens=self.output_tokens.sample(random))
            )
        return Session(session_id=f"s{index}", turns=tuple(turns))

    def _random(self, stream: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, index])

    def _random_tokens(self, random: np.random.Generator, count: int) -> tuple[int, ...]:
        return tuple(random.integers(FIRST_PLAIN_TOKEN, self.vocab_size, size=count).tolist())


def repeat(sessions: Sequence[Session]) -> Iterator[Session]:
    """Yields `sessions` over and over; from the second round on under new session ids."""
    for round_number in itertools.count():
        for session in sessions:
            name = f"{session.session_id}#{round_number}" if round_number else session.session_id
            yield Session(session_id=name, turns=session.turns)


def take(sessions: Iterator[Session], num_requests: int) -> Iterator[Session]:
    """Yields sessions of `num_requests` turns in all; the last one may be cut short."""
    left = num_requests
    while left > 0 and (session := next(sessions, None)) is not None:
        turns = session.turns[:left]
        left -= len(turns)
        yield Session(session_id=session.session_id, turns=turns)


def poisson_arrivals_s(rate: float, *, seed: int) -> Iterator[float]:
    """Yields when sessions arrive, seconds from the start, at `rate` a second on average.

    An infinite rate has them all arrive at once.
    """
    random = np.random.default_rng([seed, 2])
    now_s = 0.0
    while True:
        if np.isfinite(rate):
            now_s += float(random.exponential(1 / rate))
        yield now_s
