"""The one ladder: every compiled shape of a step is one of its rungs."""

import bisect
from dataclasses import dataclass

from memserve_jax.core.config import EngineSection

LEAST_CHUNK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Ladder:
    """Sizes a step is padded to. A size between two rungs takes the upper one."""

    decode_rows: tuple[int, ...]  # B of a decode step; none where an engine only prefills
    mixed_tokens: tuple[int, ...]  # T of a step that also prefills

    def rows(self, num_rows: int) -> int:
        """The rung for a decode step of `num_rows` rows."""
        return self.decode_rows[bisect.bisect_left(self.decode_rows, num_rows)]

    def tokens(self, num_tokens: int) -> int:
        """The rung for a mixed step of `num_tokens` tokens."""
        return self.mixed_tokens[bisect.bisect_left(self.mixed_tokens, num_tokens)]

    def __len__(self) -> int:
        return len(self.decode_rows) + len(self.mixed_tokens)


def ladder_of(config: EngineSection, *, decodes: bool) -> Ladder:
    """Returns the ladder of an engine; see `make_ladder`."""
    return make_ladder(
        max_running=config.max_running, chunk_tokens=config.chunk_tokens, decodes=decodes
    )


def make_ladder(*, max_running: int, chunk_tokens: int, decodes: bool = True) -> Ladder:
    """Returns powers of two up to each limit, and the limits themselves.

    Args:
      max_running: Rows of the largest decode step.
      chunk_tokens: Tokens of the largest mixed step.
      decodes: Whether there are decode steps; else single tokens take mixed ones too.
    """
    return Ladder(
        decode_rows=_doubling(1, max_running) if decodes else (),
        mixed_tokens=_doubling(min(LEAST_CHUNK_TOKENS, chunk_tokens), chunk_tokens),
    )


def _doubling(least: int, most: int) -> tuple[int, ...]:
    rungs = []
    rung = least
    while rung < most:
        rungs.append(rung)
        rung *= 2
    return (*rungs, most)
