"""`tokenizer.model` by way of the sentencepiece library, with the tokens added beside it."""

import itertools
import pathlib
import re
from collections.abc import Mapping
from typing import Any, cast

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from memserve_jax.core.errors import CheckpointError


class SentencePieceCodec:
    """One `tokenizer.model`."""

    def __init__(self, file: pathlib.Path, tokenizer_config: Mapping[str, Any]):
        """Reads `file`.

        Args:
          file: A serialised sentencepiece model.
          tokenizer_config: `added_tokens_decoder` gives tokens the model lacks; `legacy` (true
            where absent, as in Hugging Face) puts the leading space before every piece of text
            between special tokens, not before the first alone.

        Raises:
          CheckpointError: it is no sentencepiece model.
        """
        try:
            content = file.read_bytes()
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
            self._continuing = _without_leading_space(content)
        except Exception as error:  # the library raises RuntimeError and protobuf's own
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{file}: not a sentencepiece model: {reason}") from None
        model = self._model
        self._size = model.get_piece_size()
        self._special = {
            token
            for token in range(self._size)
            if model.is_control(token) or model.is_unknown(token)
        }
        self._added: dict[int, str] = {}
        for key, entry in tokenizer_config.get("added_tokens_decoder", {}).items():
            token, text = int(key), str(entry["content"])
            if entry.get("special"):
                self._special.add(token)
            if token >= self._size:
                self._added[token] = text
        self._spelt = {
            model.id_to_piece(token): token for token in sorted(self._special) if token < self._size
        }
        self._spelt |= {text: token for token, text in self._added.items()}
        longest_first = sorted(self._spelt, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._bos, self._eos = model.bos_id(), model.eos_id()
        self._adds_bos = bool(tokenizer_config.get("add_bos_token", True)) and self._bos >= 0
        self._adds_eos = bool(tokenizer_config.get("add_eos_token", False)) and self._eos >= 0
        self._is_legacy = bool(tokenizer_config.get("legacy", True))
        self._context = _context_token(model)

    @property
    def byte_values(self) -> None:
        """None: pieces are not plain bytes."""
        return None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the ids of `text`; special and added tokens spelt out in it count as such."""
        ids = [self._bos] if add_special_tokens and self._adds_bos else []
        is_first = True
        for piece in self._pattern.split(text) if self._spelt else [text]:
            if not piece:
                continue
            if piece in self._spelt:
                ids.append(self._spelt[piece])
            else:
                model = self._model if is_first or self._is_legacy else self._continuing
                ids += model.encode(piece)
            is_first = False
        return [*ids, self._eos] if add_special_tokens and self._adds_eos else ids

    def decode(self, token_ids: list[int]) -> str:
        """Returns the text of `token_ids` without special tokens."""
        text = ""
        visible = (token for token in token_ids if self.visible(token))
        for is_added, group in itertools.groupby(visible, key=lambda token: token >= self._size):
            tokens = list(group)
            if is_added:
                text += "".join(self._added[token] for token in tokens)
            elif text:
                behind = self._model.decode([self._context])
                text += self._model.decode([self._context, *tokens])[len(behind) :]
            else:
                text += self._model.decode(tokens)
        return text

    def visible(self, token_id: int) -> bool:
        """Whether the id is known and not special."""
        is_known = 0 <= token_id < self._size or token_id in self._added
        return is_known and token_id not in self._special

    def is_byte(self, token_id: int) -> bool:
        """Whether the id is a byte piece."""
        return 0 <= token_id < self._size and self._model.is_byte(token_id)

    def context_after(self, context: list[int], token_ids: list[int], text: str) -> list[int]:
        """Returns one visible piece, or, while there is no text, all: leading spaces go."""
        return [self._context] if text else context + token_ids

    def token_id(self, token: str) -> int | None:
        """Returns the id of `token`, None if there is none."""
        if token in self._spelt:
            return self._spelt[token]
        found = self._model.piece_to_id(token)
        return None if found == self._model.unk_id() else found


def _without_leading_space(content: bytes) -> Any:
    """Returns a processor that puts no space before the text: for text inside a line."""
    proto: Any = cast(Any, sentencepiece_model_pb2).ModelProto()
    proto.ParseFromString(content)
    proto.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def _context_token(model: Any) -> int:
    """Returns an ordinary piece that starts with no space, to decode behind."""
    for token in range(model.get_piece_size()):
        is_ordinary = not (
            model.is_control(token)
            or model.is_unknown(token)
            or model.is_byte(token)
            or model.is_unused(token)
        )
        if is_ordinary and "▁" not in model.id_to_piece(token):
            return token
    raise ValueError("it has no ordinary piece")
