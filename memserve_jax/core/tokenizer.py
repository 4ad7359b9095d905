"""Tokenises text and chats, and turns tokens back into text, as a model directory says."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from memserve_jax.core.chat_template import ChatTemplate, load_chat_template
from memserve_jax.core.checkpoint_files import checkpoint_dir, read_json_if_there
from memserve_jax.core.codec import Codec
from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.huggingface_codec import HuggingFaceCodec
from memserve_jax.core.no_codec import NoCodec
from memserve_jax.core.sentencepiece_codec import SentencePieceCodec
from memserve_jax.core.text_stream import TextStream, open_text_stream

_log = logging.getLogger(__name__)


class Tokenizer:
    """Text and chats in, token ids out, and back. Never changes; any thread may use it."""

    def __init__(
        self,
        codec: Codec,
        *,
        leading_token: int | None = None,
        template: ChatTemplate | None = None,
    ):
        """Joins the parts.

        Args:
          codec: The vocabulary.
          leading_token: Put before a text that `codec` does not start with it; None: none.
          template: How a chat reads as text; None: the model takes no chats.
        """
        self._codec = codec
        self._leading_token = leading_token
        self._template = template

    @property
    def has_text(self) -> bool:
        """Whether there is a vocabulary; without one answers have token ids alone."""
        return not isinstance(self._codec, NoCodec)

    @property
    def takes_chats(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a plain prompt, with BOS where the model wants one."""
        ids = self._codec.encode(text, add_special_tokens=True)
        if self._leading_token is not None and ids[:1] != [self._leading_token]:
            return [self._leading_token, *ids]
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Returns the ids of a chat, up to where the assistant is to speak.

        No special token is added to those that the template writes.

        Args:
          messages: `role` and `content` each.

        Raises:
          InvalidRequestError: there is no chat template, or it refuses the messages.
        """
        if self._template is None:
            raise InvalidRequestError(
                "chat", f"{len(messages)} messages", "text or token_ids: no chat template"
            )
        return self._codec.encode(self._template.render(messages), add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of `token_ids`, without special tokens; U+FFFD where no UTF-8."""
        return self._codec.decode(list(token_ids))

    def text_stream(self) -> TextStream:
        """Returns a fresh stream for one answer."""
        return open_text_stream(self._codec)


def load_tokenizer(path: str) -> Tokenizer:
    """Returns the tokenizer of the model directory `path`.

    A directory without one serves token ids; that is said once in the log.

    Raises:
      CheckpointError: no such directory, or an unreadable file.
    """
    folder = checkpoint_dir(path)
    config_file = folder / "tokenizer_config.json"
    config = read_json_if_there(config_file)
    special_tokens = _special_tokens(read_json_if_there(folder / "special_tokens_map.json"))
    special_tokens |= _special_tokens(config)
    codec: Codec
    if (folder / "tokenizer.json").exists():
        codec = HuggingFaceCodec(folder / "tokenizer.json", special_tokens.values())
    elif (folder / "tokenizer.model").exists():
        codec = SentencePieceCodec(folder / "tokenizer.model", config)
    else:
        _log.warning("%s: no tokenizer.json and no tokenizer.model: takes token_ids only", path)
        codec = NoCodec()
    leading_token = None
    if config.get("add_bos_token") is True and "bos_token" in special_tokens:
        leading_token = codec.token_id(special_tokens["bos_token"])
    template = load_chat_template(folder, config, special_tokens)
    return Tokenizer(codec, leading_token=leading_token, template=template)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns `bos_token` and the like; an entry is a string or an object with `content`."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if not key.endswith("_token"):
            continue
        text = cast(Any, value).get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[key] = text
    return found
