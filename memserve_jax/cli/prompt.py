"""The prompt of a command line: a text, standard input, or token ids."""

import sys

import click


def given_prompt(prompt: str | None, token_ids: str | None) -> tuple[str | None, list[int] | None]:
    """Returns the text or the token ids given; exactly one of them.

    Raises:
      click.UsageError: neither or both, no numbers, or standard input that is not UTF-8.
    """
    if token_ids is not None:
        if prompt is not None:
            raise click.UsageError("--token-ids: got PROMPT beside it, allowed: one of the two")
        return None, _parse_ids(token_ids)
    if prompt is None:
        raise click.UsageError("PROMPT: got nothing, allowed: a text, - or --token-ids")
    return (_read_stdin() if prompt == "-" else prompt), None


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(
            f"--token-ids: got {text!r}, allowed: numbers joined by commas"
        ) from None


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise click.UsageError(
            f"PROMPT: standard input is not UTF-8: byte 0x{byte:02x} at {error.start}"
        ) from None
