"""Workloads from files: our JSONL, one request a line, and ShareGPT's list of conversations."""

import json
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from memserve_jax.bench.workload import ChatTurn, Message, Session, TextTurn, TokenTurn, Turn
from memserve_jax.core.errors import ConfigError

PROMPT_KEYS = ("prompt", "token_ids", "messages")
KNOWN_KEYS = (*PROMPT_KEYS, "output_tokens", "session_id")
MAX_OUTPUT_TOKENS = 2**31 - 1
MAX_TOKEN_ID = 2**32 - 1
_HUMAN, _ANSWER = ("human", "user"), ("gpt", "assistant", "chatgpt", "bing", "bard")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """What a file leaves open."""

    draw_output_tokens: Callable[[], int]  # for requests that do not say
    count_tokens: Callable[[str], int] | None = None  # measures a recorded answer, if given
    as_text: bool = False  # chats become plain text, for models without a chat template


def load_dataset(path: str, options: DatasetOptions) -> list[Session]:
    """Returns the sessions of a file, in its order.

    A JSONL line holds one of `prompt` (text), `token_ids` and `messages` ([{role, content}]), and
    maybe `output_tokens` and `session_id`: lines with the same one are turns of one session, each
    with what is new in it. A file that starts with `[` is ShareGPT's: every human message of a
    conversation is a turn; the recorded answers only say how long ours are to be.

    Raises:
      ConfigError: cannot be read, or is wrong: with the line or entry, the key, what was there
        and what is allowed.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--dataset {path}: cannot read: {error}") from None
    reader = _read_sharegpt if text.lstrip().startswith("[") else _read_jsonl
    sessions = reader(path, text, options)
    if not sessions:
        raise ConfigError(f"--dataset {path}: holds no request")
    return sessions


def _read_jsonl(path: str, text: str, options: DatasetOptions) -> list[Session]:
    turns: dict[str, list[Turn]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        entry = _mapping(_parse(line, where), where)
        _check_keys(entry, where)
        session_id = entry.get("session_id")
        name = f"line{number}" if session_id is None else _text(entry, "session_id", where)
        others = turns.setdefault(name, [])
        turn = _turn(entry, where, options)
        if others and type(others[0]) is not type(turn):
            raise ConfigError(f"{where}: session {name!r} mixes kinds of prompt, allowed: one")
        others.append(turn)
    return [Session(session_id=name, turns=tuple(parts)) for name, parts in turns.items()]


def _turn(entry: dict[str, object], where: str, options: DatasetOptions) -> Turn:
    output_tokens = entry.get("output_tokens")
    if output_tokens is None:
        output_tokens = options.draw_output_tokens()
    output_tokens = _whole(output_tokens, f"{where}: output_tokens", 1, MAX_OUTPUT_TOKENS)
    if "token_ids" in entry:
        ids = _list(entry["token_ids"], f"{where}: token_ids")
        tokens = tuple(_whole(token, f"{where}: token_ids", 0, MAX_TOKEN_ID) for token in ids)
        return TokenTurn(token_ids=tokens, output_tokens=output_tokens)
    if "prompt" in entry:
        return TextTurn(text=_text(entry, "prompt", where), output_tokens=output_tokens)
    messages = tuple(
        Message(_text(message, "role", where), _text(message, "content", where))
        for item in _list(entry["messages"], f"{where}: messages")
        for message in [_mapping(item, f"{where}: messages")]
    )
    return _chat_turn(messages, output_tokens, options)


def _read_sharegpt(path: str, text: str, options: DatasetOptions) -> list[Session]:
    sessions = []
    for number, item in enumerate(_list(_parse(text, path), path)):
        where = f"{path}: entry {number}"
        entry = _mapping(item, where)
        if "conversations" not in entry:
            raise ConfigError(f"{where}: conversations: missing")
        pieces = [
            _mapping(piece, f"{where}: conversations")
            for piece in _list(entry["conversations"], f"{where}: conversations")
        ]
        turns = tuple(_sharegpt_turns(pieces, where, options))
        if turns:  # some recorded conversations hold no question
            sessions.append(Session(session_id=str(entry.get("id", number)), turns=turns))
    return sessions


def _sharegpt_turns(
    pieces: list[dict[str, object]], where: str, options: DatasetOptions
) -> Iterator[Turn]:
    new: list[Message] = []
    for place, piece in enumerate(pieces):
        speaker, value = _text(piece, "from", where), _text(piece, "value", where)
        if speaker in _ANSWER:
            continue
        if speaker not in _HUMAN:
            new.append(Message("system", value))
            continue
        new.append(Message("user", value))
        answer = pieces[place + 1] if place + 1 < len(pieces) else {}
        output_tokens = _recorded_tokens(answer, options) or options.draw_output_tokens()
        yield _chat_turn(tuple(new), output_tokens, options)
        new = []


def _recorded_tokens(answer: dict[str, object], options: DatasetOptions) -> int:
    """Returns the length of a recorded answer; 0 where there is none or nothing to measure by."""
    value = answer.get("value")
    if answer.get("from") not in _ANSWER or not isinstance(value, str):
        return 0
    return options.count_tokens(value) if options.count_tokens else 0


def _chat_turn(messages: tuple[Message, ...], output_tokens: int, options: DatasetOptions) -> Turn:
    if options.as_text:
        text = "".join(f"{message.content}\n" for message in messages)
        return TextTurn(text=text, output_tokens=output_tokens)
    return ChatTurn(messages=messages, output_tokens=output_tokens)


def _check_keys(entry: dict[str, object], where: str) -> None:
    unknown = sorted(set(entry) - set(KNOWN_KEYS))
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]}: unknown key, allowed: {', '.join(KNOWN_KEYS)}")
    present = [key for key in PROMPT_KEYS if key in entry]
    if len(present) != 1:
        got = ", ".join(present) or "no prompt"
        raise ConfigError(f"{where}: got {got}, allowed: exactly one of {', '.join(PROMPT_KEYS)}")


def _parse(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None


def _mapping(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: got {type(value).__name__}, allowed: an object")
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: got {_short(value)}, allowed: a list that is not empty")
    return value


def _text(entry: dict[str, object], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key}: got {_short(value)}, allowed: text")
    return value


def _whole(value: object, where: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f"{where}: got {_short(value)}, allowed: a whole number from {least} to {most}"
        )
    return value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
