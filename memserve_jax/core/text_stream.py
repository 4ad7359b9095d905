"""Turns a growing answer into text, whole characters only, at constant cost a token."""

import codecs
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from memserve_jax.core.codec import Codec

_REPLACEMENT = "\ufffd"
_MAX_HELD_TOKENS = 4  # UTF-8 has at most four bytes a character


@runtime_checkable
class TextStream(Protocol):
    """What was pushed, joined, and the flush equal the decoded whole."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the new text that is certain after `token_ids`; may be empty."""
        ...

    def flush(self) -> str:
        """Returns what was held back. The stream is over."""
        ...


def open_text_stream(codec: Codec) -> TextStream:
    """Returns a stream over an answer that is empty so far."""
    if codec.byte_values is not None:
        return ByteStream(codec.byte_values)
    return SegmentStream(codec)


class ByteStream:
    """For byte-level vocabularies: each id is bytes, an incremental UTF-8 decoder does the rest."""

    def __init__(self, byte_values: list[bytes]):
        self._byte_values = byte_values
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the characters completed by `token_ids`."""
        values = self._byte_values
        known = (values[token] for token in token_ids if 0 <= token < len(values))
        return self._decoder.decode(b"".join(known))

    def flush(self) -> str:
        """Returns U+FFFD for a character that never came to its end."""
        return self._decoder.decode(b"", final=True)


class SegmentStream:
    """For other vocabularies: decodes short segments behind a context of what came before.

    Runs of byte tokens wait until they end, because they decode as a whole: three bytes of a
    character may yet prove to be invalid together with the fourth.
    """

    def __init__(self, codec: Codec):
        self._codec = codec
        self._context: list[int] = []
        self._context_text = ""
        self._held: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text up to the last run of bytes, if that is still open."""
        codec = self._codec
        self._held += [token for token in token_ids if codec.visible(token)]
        end = len(self._held)
        while end and codec.is_byte(self._held[end - 1]):
            end -= 1
        return self._emit(end)

    def flush(self) -> str:
        """Returns the text of an open run of bytes."""
        return self._emit(len(self._held), final=True)

    def _emit(self, num_tokens: int, *, final: bool = False) -> str:
        if not num_tokens:
            return ""
        ready = self._held[:num_tokens]
        text = self._codec.decode(self._context + ready)[len(self._context_text) :]
        is_open = text.endswith(_REPLACEMENT) and not self._codec.is_byte(ready[-1])
        if is_open and not final and num_tokens < _MAX_HELD_TOKENS:
            return ""
        del self._held[:num_tokens]
        self._context = self._codec.context_after(self._context, ready, text)
        self._context_text = self._codec.decode(self._context)
        return text
