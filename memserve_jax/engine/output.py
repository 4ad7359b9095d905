"""An answer as it grows: when it ends, and which of its text may be shown."""

from collections.abc import Sequence
from typing import NamedTuple

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.text_stream import TextStream
from memserve_jax.core.types import FinishReason, SamplingParams


class Piece(NamedTuple):
    """What one token adds."""

    text: str
    finish_reason: FinishReason | None


class Answer:
    """Tokens of one answer, their text, and the rules that end it.

    EOS and stop tokens count as tokens and show no text. A stop string ends the text before it
    and the ids with the token that completes it; text that may be the start of one is held
    back until it is clear. The result does not depend on how tokens cut the text.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        eos_token_ids: frozenset[int],
        max_tokens: int,
        stream: TextStream,
    ):
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._enders = sampling.stop_token_ids
        if not sampling.ignore_eos:
            self._enders = self._enders | eos_token_ids
        self._stops = sampling.stop
        self._stream = stream
        self._held = ""

    def resume(self, token_ids: Sequence[int]) -> None:
        """Takes the tokens of an answer that broke off; what they show has been shown.

        Raises:
          InvalidRequestError: it ended with one of them.
        """
        for index, token_id in enumerate(token_ids):
            if self.num_tokens + 1 >= self.max_tokens:
                raise InvalidRequestError(
                    "resume.token_ids",
                    f"{len(token_ids)} tokens",
                    f"fewer than {self.max_tokens}: as many as the answer may have",
                )
            if self.push(token_id).finish_reason is not None:
                raise InvalidRequestError(
                    f"resume.token_ids[{index}]", token_id, "a token that does not end the answer"
                )

    def push(self, token_id: int) -> Piece:
        """Takes the next token; returns the text to show and whether the answer ended."""
        assert self.finish_reason is None, "a token after the end"
        self.num_tokens += 1
        if token_id in self._enders:
            return self._end(FinishReason.STOP)
        text = self._stream.push([token_id])
        if not self._stops and self.num_tokens < self.max_tokens:
            return Piece(text, None)
        shown, is_stopped = self._show(text)
        if is_stopped:
            self.finish_reason = FinishReason.STOP
        elif self.num_tokens >= self.max_tokens:
            rest = self._end(FinishReason.LENGTH)
            return Piece(shown + rest.text, rest.finish_reason)
        return Piece(shown, self.finish_reason)

    def _end(self, reason: FinishReason) -> Piece:
        shown, is_stopped = self._show(self._stream.flush())
        self.finish_reason = FinishReason.STOP if is_stopped else reason
        return Piece(shown + self._take_held(), self.finish_reason)

    def _take_held(self) -> str:
        held, self._held = self._held, ""
        return held

    def _show(self, text: str) -> tuple[str, bool]:
        """Returns what of held + `text` may be shown, and whether a stop string was met."""
        text = self._held + text
        self._held = ""
        cut = first_stop(text, self._stops)
        if cut is not None:
            return text[:cut], True
        keep = len(text) - num_ambiguous(text, self._stops)
        self._held = text[keep:]
        return text[:keep], False


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Returns where the stop string begins that is complete first; the longest, if several."""
    found = ((text.find(stop), stop) for stop in stops if stop)
    ends = [(start + len(stop), start) for start, stop in found if start >= 0]
    return min(ends)[1] if ends else None


def num_ambiguous(text: str, stops: Sequence[str]) -> int:
    """Returns how many last characters of `text` may be the start of a stop string."""
    longest = min(len(text), max((len(stop) for stop in stops), default=1) - 1)
    for length in range(longest, 0, -1):
        tail = text[len(text) - length :]
        if any(stop.startswith(tail) for stop in stops):
            return length
    return 0
