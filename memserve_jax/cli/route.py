"""`memserve route`: says where a prompt would go, and why."""

import json
from typing import Any

import click
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from memserve_jax.cli.credential_options import connect
from memserve_jax.cli.options import target_option, usage_errors
from memserve_jax.cli.prompt import given_prompt
from memserve_jax.cli.status import PIPED_WIDTH, to_plain
from memserve_jax.proto import memserve_pb2 as pb

_COLUMNS = (
    "", "instance", "role", "state", "cached tokens", "queued tokens", "sequences",
    "cached blocks", "queued ms", "prefill ms", "first token ms",
)  # fmt: skip


@click.command()
@click.argument("prompt", required=False)
@target_option
@click.option("--explain", is_flag=True, help="Show what every instance would cost.")
@click.option("--session", "session_id", metavar="ID", help="Conversation this belongs to.")
@click.option("--token-ids", metavar="1,2,3", help="A prompt of token ids, in place of PROMPT.")
@click.option("--cache-salt", help="Shares cached prefixes only with the same salt.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(
    prompt: str | None,
    target: str,
    explain: bool,
    token_ids: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say where PROMPT (`-`: standard input) would go; with --explain why. Generates nothing."""
    text, ids = given_prompt(prompt, token_ids)
    with usage_errors(), connect(target) as client:
        ask = client.explain if explain else client.route
        reply: Message = ask(text, token_ids=ids, **options)
    if as_json:
        click.echo(json.dumps(to_plain(reply), indent=2))
    elif isinstance(reply, pb.ExplainReply):
        _show(reply)
    else:
        assert isinstance(reply, pb.RouteResponse)
        click.echo(f"{reply.target}: {_route(reply.route)}")


def _show(reply: pb.ExplainReply) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH, highlight=False)
    console.print(to_table(reply))
    console.print(_route(reply.route), markup=False)
    console.print(f"{reply.policy}: {reply.why}", markup=False)


def to_table(reply: pb.ExplainReply) -> Table:
    """Returns what each instance would cost, for a person."""
    table = Table(box=None, pad_edge=False, title=f"a prompt of {reply.prompt_tokens} tokens")
    for column in _COLUMNS:
        is_text = column in ("", "instance", "role", "state")
        table.add_column(column, justify="left" if is_text else "right")
    chosen = (reply.route.prefill_instance, reply.route.decode_instance)
    for each in reply.instances:
        table.add_row(*_row(each, is_chosen=each.instance in chosen))
    return table


def _row(each: pb.ExplainedInstance, *, is_chosen: bool) -> list[str]:
    head = ["→" if is_chosen else "", each.instance, each.role, each.state]
    if each.state != "serving":
        return [*head, *["-"] * (len(_COLUMNS) - len(head))]
    crowd = " (crowded)" if each.is_crowded else ""
    counts = [each.cached_tokens, each.queued_prefill_tokens]
    row = [*head, *map(str, counts), f"{each.sequences}{crowd}", str(each.indexed_blocks)]
    if not each.can_start:
        return [*row, "-", "-", "-"]
    seconds = (each.queued_s, each.prefill_s, each.queued_s + each.prefill_s)
    return [*row, *(f"{value * 1e3:.1f}" for value in seconds)]


def _route(route: pb.RouteInfo) -> str:
    where = f"prefill at {route.prefill_instance}, decode at {route.decode_instance}"
    if route.prefill_instance == route.decode_instance:
        where = f"to {route.prefill_instance}"
    told = f"{where}, {route.cached_tokens} tokens cached"
    if route.fetch_instance:
        told += f"; {route.fetch_instance} holds {route.fetch_tokens} and may be fetched from"
    return told
