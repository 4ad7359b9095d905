"""`memserve generate`: streams the answer to one prompt."""

import json
from collections.abc import Iterable
from typing import Any

import click

from memserve_jax.cli.credential_options import connect
from memserve_jax.cli.options import client_options, sampling_options, target_option, usage_errors
from memserve_jax.cli.prompt import given_prompt
from memserve_jax.client import Answer, Chunk, ClientError
from memserve_jax.client.answer import join
from memserve_jax.core.types import FinishReason


@click.command()
@click.argument("prompt", required=False)
@target_option
@sampling_options
@click.option("--session", "session_id", metavar="ID", help="Conversation this belongs to.")
@click.option("--token-ids", metavar="1,2,3", help="A prompt of token ids, in place of PROMPT.")
@click.option("--cache-salt", help="Shares cached prefixes only with the same salt.")
@click.option("--priority", type=int, help="Lower goes first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end, no stream.")
def command(
    prompt: str | None, target: str, token_ids: str | None, as_json: bool, **options: Any
) -> None:
    """Stream the answer to PROMPT (`-`: standard input, UTF-8, as it is)."""
    text, ids = given_prompt(prompt, token_ids)
    with usage_errors(), connect(target) as client:
        chunks = client.stream(text, token_ids=ids, **client_options(options))
        answer = join(chunks if as_json else _echoed(chunks))
    if as_json:
        click.echo(json.dumps(to_json(answer), ensure_ascii=False))
    if answer.finish_reason is FinishReason.CANCELLED:
        raise ClientError("CANCELLED", "the server cancelled the request")


def to_json(answer: Answer) -> dict[str, Any]:
    """Returns the object that `--json` prints."""
    return {
        "token_ids": list(answer.token_ids),
        "text": answer.text,
        "finish_reason": answer.finish_reason.name,
        "prompt_tokens": answer.usage.prompt_tokens,
        "cached_tokens": answer.usage.cached_tokens,
        "completion_tokens": answer.usage.completion_tokens,
        "ttft_s": answer.timing.ttft_s,
        "jct_s": answer.timing.jct_s,
        "prefill_instance": answer.timing.prefill_instance,
        "decode_instance": answer.timing.decode_instance,
    }


def _echoed(chunks: Iterable[Chunk]) -> Iterable[Chunk]:
    """Yields `chunks`, each printed as it comes, and a line end after the last."""
    has_text = False
    try:
        for chunk in chunks:
            if chunk.text:
                click.echo(chunk.text, nl=False)
                has_text = True
            yield chunk
    finally:
        if has_text:
            click.echo()
