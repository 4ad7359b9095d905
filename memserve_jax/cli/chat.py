"""`memserve chat`: a conversation, whose history the server finds in its cache."""

import contextlib
import sys
import uuid
from typing import Any

import click

from memserve_jax.cli.credential_options import connect
from memserve_jax.cli.options import client_options, sampling_options, target_option, usage_errors
from memserve_jax.client import Client


@click.command()
@target_option
@sampling_options
@click.option("--session", "session_id", metavar="ID", help="Default: a new one.")
@click.option("--system", metavar="TEXT", help="A system message at the start.")
def command(target: str, session_id: str | None, system: str | None, **options: Any) -> None:
    """Talk, one line a turn, until end of input (or `/exit`); Ctrl-C ends an answer."""
    sampling = client_options(options)
    sampling["session_id"] = session_id or uuid.uuid4().hex
    messages = [{"role": "system", "content": system}] if system else []
    with usage_errors(), connect(target) as client:
        while (line := _read_line()) is not None:
            if not line.strip():
                continue
            messages.append({"role": "user", "content": line})
            answer = _answer(client, messages, sampling)
            messages.append({"role": "assistant", "content": answer})


def _read_line() -> str | None:
    """Returns the next line, None at the end."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        click.echo("> ", nl=False, err=True)
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        raise click.UsageError("standard input is not UTF-8") from None
    if is_terminal and not line:
        click.echo(err=True)
    return None if not line or line.strip() == "/exit" else line.rstrip("\n")


def _answer(client: Client, messages: list[dict[str, str]], sampling: dict[str, Any]) -> str:
    """Prints the answer as it comes and returns it, whole or as far as it was let."""
    text = ""
    chunks = client.stream(messages=messages, **sampling)
    with contextlib.closing(chunks):
        try:
            for chunk in chunks:
                text += chunk.text
                click.echo(chunk.text, nl=False)
        except KeyboardInterrupt:
            click.echo(" [stopped]", nl=False, err=True)
    click.echo()
    return text
