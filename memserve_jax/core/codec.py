"""Text to token ids and back: the two kinds of tokenizer file, behind one protocol."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Codec(Protocol):
    """A vocabulary. Ids it does not know decode to nothing, as special tokens do."""

    @property
    def byte_values(self) -> list[bytes] | None:
        """Bytes of every id, where text is those bytes joined (byte-level BPE); else None."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the ids of `text`; tokens added by the file's own rules only if told so."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Returns the text of `token_ids` without special tokens."""
        ...

    def visible(self, token_id: int) -> bool:
        """Whether the id has text: known and not special."""
        ...

    def is_byte(self, token_id: int) -> bool:
        """Whether the id is one byte (`<0xE2>`): runs of those decode as a whole."""
        ...

    def context_after(self, context: list[int], token_ids: list[int], text: str) -> list[int]:
        """Returns the shortest ids that stand for all that came before, for decoding on.

        Args:
          context: What stood for it before `token_ids`.
          token_ids: Visible ids just decoded, at least one.
          text: Their text.
        """
        ...

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token given by its exact spelling."""
        ...
