"""Builds requests from plain Python values."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.telemetry.request_context import Metadata

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SAMPLING = tuple(field.name for field in pb.SamplingParams.DESCRIPTOR.fields)
_REQUEST = ("request_id", "session_id", "cache_salt", "priority")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to go on from: exactly one of the three is given."""

    text: str | None = None
    token_ids: Sequence[int] | None = None
    messages: Sequence[Mapping[str, str]] | None = None  # `role` and `content` each

    def __post_init__(self):
        given = [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not None
        ]
        if len(given) != 1:
            got = " and ".join(given) or "nothing"
            raise ValueError(f"prompt: got {got}, allowed: one of prompt, token_ids, messages")


def build_request(prompt: Prompt, options: Mapping[str, Any]) -> pb.GenerateRequest:
    """Returns the message for `prompt`.

    Args:
      prompt: The prompt.
      options: Fields of `GenerateRequest` (`session_id`, …) and `SamplingParams`
        (`max_tokens`, …) by name; None leaves one unset.

    Raises:
      ValueError: an option that does not exist, a value of the wrong type or size, or text that
        is not valid Unicode; names the option.
    """
    message = pb.GenerateRequest()
    if prompt.text is not None:
        _fill(message, "text", prompt.text)
    elif prompt.token_ids is not None:
        message.token_ids.SetInParent()
        _fill(message.token_ids, "ids", prompt.token_ids, name="token_ids")
    else:
        message.chat.SetInParent()
        for index, entry in enumerate(prompt.messages or ()):
            added = message.chat.messages.add()
            for field in ("role", "content"):
                name = f"messages[{index}].{field}"
                if field not in entry:
                    raise ValueError(f"{name}: got nothing, allowed: a string")
                _fill(added, field, entry[field], name=name)
    for name, value in options.items():
        if name not in (*_REQUEST, *_SAMPLING):
            raise ValueError(f"{name}: no such option{_suggestion(name)}")
        if value is not None:
            _fill(message if name in _REQUEST else message.sampling, name, value)
    return message


def trace_metadata(traceparent: str | None) -> Metadata:
    """Returns what a call carries so that its spans are children of the caller's.

    Raises:
      ValueError: not a `traceparent` as W3C has it.
    """
    if traceparent is None:
        return ()
    if not _TRACEPARENT.fullmatch(traceparent):
        raise ValueError(
            f"traceparent: got {traceparent!r}, allowed: 00-<32 hex digits>-<16 hex digits>-<2>"
        )
    return (("traceparent", traceparent),)


def _fill(message: Any, field: str, value: Any, name: str | None = None) -> None:
    """Sets one field; what protobuf refuses becomes a ValueError that names it."""
    is_list = field in ("ids", "stop", "stop_token_ids")
    try:
        if is_list:
            getattr(message, field).extend([value] if isinstance(value, str) else value)
        else:
            setattr(message, field, value)
    except UnicodeEncodeError:
        raise ValueError(f"{name or field}: not valid Unicode text (a lone surrogate)") from None
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name or field}: {reason}") from None


def _suggestion(name: str) -> str:
    options = [*_REQUEST, *_SAMPLING]
    near = difflib.get_close_matches(name, options, n=1)
    return f", did you mean {near[0]}?" if near else f", allowed: {', '.join(options)}"
