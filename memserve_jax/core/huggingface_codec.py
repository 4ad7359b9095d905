"""`tokenizer.json` by way of the `tokenizers` library."""

import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any, cast

import tokenizers

from memserve_jax.core.errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class HuggingFaceCodec:
    """One `tokenizer.json`."""

    def __init__(self, file: pathlib.Path, special_tokens: Iterable[str] = ()):
        """Reads `file`.

        Args:
          file: What the `tokenizers` library writes.
          special_tokens: Tokens that count as special even if `file` does not say so; those that
            it lacks are left out, because the model has no embedding for them.

        Raises:
          CheckpointError: it is not what the `tokenizers` library writes.
        """
        try:
            # The library raises its own subclasses of Exception alone.
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:
            raise CheckpointError(f"{file}: cannot read: {' '.join(str(error).split())}") from None
        known = [
            token for token in special_tokens if self._tokenizer.token_to_id(token) is not None
        ]
        cast(Any, self._tokenizer).add_special_tokens(known)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, entry in added.items() if entry.special)
        kinds = _decoder_kinds(self._tokenizer.decoder)
        self._byte_tokens: frozenset[int] = frozenset()
        if "ByteFallback" in kinds:
            self._byte_tokens = frozenset(
                token for text, token in vocabulary.items() if _BYTE_TOKEN.fullmatch(text)
            )
        self._known = frozenset(vocabulary.values()) - self._special
        self._byte_values = None
        if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse", "Sequence"}:
            self._byte_values = _byte_values(vocabulary, self._known)

    @property
    def byte_values(self) -> list[bytes] | None:
        """Bytes of every id of a byte-level vocabulary."""
        return self._byte_values

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the ids of `text`; special tokens spelt out in it count as such."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: list[int]) -> str:
        """Returns the text of `token_ids` without special tokens."""
        known = [token for token in token_ids if token in self._known]
        return self._tokenizer.decode(known, skip_special_tokens=True)

    def visible(self, token_id: int) -> bool:
        """Whether the id is known and not special."""
        return token_id in self._known

    def is_byte(self, token_id: int) -> bool:
        """Whether the id is a byte-fallback token."""
        return token_id in self._byte_tokens

    def context_after(self, context: list[int], token_ids: list[int], text: str) -> list[int]:
        """Returns the last id: these decoders look no further back."""
        del context, text
        return token_ids[-1:]

    def token_id(self, token: str) -> int | None:
        """Returns the id of `token`, None if there is none."""
        return self._tokenizer.token_to_id(token)


def _decoder_kinds(decoder: Any) -> set[str]:
    """Returns the types in a decoder and its parts."""
    if decoder is None:
        return set()
    kinds: set[str] = set()
    pending = [json.loads(decoder.__getstate__())]
    while pending:
        node = pending.pop()
        kinds.add(node["type"])
        pending += node.get("decoders", [])
    return kinds


def _byte_values(vocabulary: dict[str, int], known: frozenset[int]) -> list[bytes]:
    """Returns each id's bytes; ids that are not known have none.

    A token spelt in letters outside the byte alphabet (an added one) stands for itself.
    """
    byte_of = _byte_alphabet()
    values = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for text, token in vocabulary.items():
        if token not in known:
            continue
        try:
            values[token] = bytes(byte_of[letter] for letter in text)
        except KeyError:
            values[token] = text.encode()
    return values


def _byte_alphabet() -> dict[str, int]:
    """Returns byte-level BPE's letters: printable Latin-1 as it is, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }
