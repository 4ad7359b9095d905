"""`memserve status`: instances, pools, hit rates and KV moved."""

import base64
import json
import threading
import time
from typing import Any

import click
from google.protobuf.message import Message
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from memserve_jax.cli.credential_options import connect
from memserve_jax.cli.options import target_option
from memserve_jax.cli.watch import Look, rates, silent
from memserve_jax.client import Client, ClientError
from memserve_jax.proto import memserve_pb2 as pb

_COLUMNS = (
    "instance",
    "role",
    "state",
    "target",
    "tp",
    "running",
    "waiting",
    "hbm blocks",
    "host blocks",
    "disk blocks",
    "hit rate",
    "output tokens",
    "KV sent",
    "KV received",
    "sent by",
)
PIPED_WIDTH = 200  # characters a line, where no terminal says how many it has


@click.command()
@target_option
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object (with --watch: one a line).")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks of --watch.",
)
def command(target: str, watch: bool, as_json: bool, interval: float) -> None:
    """Show instances, pools, hit rates and KV moved."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    with connect(target) as client:
        if not watch:
            reply = client.status()
            if as_json:
                click.echo(json.dumps(to_plain(reply), indent=2))
            else:
                console.print(to_table(reply))
            return
        pause = threading.Event()  # never set: Ctrl-C ends the wait
        look = Look(client.status(), time.monotonic())
        found: Look | ClientError = look
        while as_json:
            if isinstance(found, Look):
                click.echo(json.dumps(to_plain(found.reply)))
            else:
                click.echo(f"{target} does not answer: {found}; asking again", err=True)
            pause.wait(interval)
            found = _seen(client)
        shown: RenderableType = Group(to_table(look.reply), rates(None, look))
        if not console.is_terminal:
            console.print(shown)
            while not pause.wait(interval):
                look, shown = _look_again(client, look)
                console.print(shown)
        with Live(shown, console=console, auto_refresh=False) as live:
            while not pause.wait(interval):
                look, shown = _look_again(client, look)
                live.update(shown, refresh=True)


def _look_again(client: Client, before: Look) -> tuple[Look, RenderableType]:
    """Returns what is seen now, and how to show it."""
    found = _seen(client)
    if isinstance(found, Look):
        return found, Group(to_table(found.reply), rates(before, found))
    return before, silent(client.target, str(found), to_table(before.reply))


def _seen(client: Client) -> Look | ClientError:
    """Returns what is seen now, or why the scheduler is silent: it may be away for a while."""
    try:
        return Look(client.status(), time.monotonic())
    except ClientError as error:
        if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            raise
        return error


def to_plain(message: Message) -> dict[str, Any]:
    """Returns `message` as plain values, every field there; 64-bit numbers stay numbers.

    Bytes become base64, as in protobuf's own JSON.
    """
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if isinstance(value, bytes):
            plain[field.name] = base64.b64encode(value).decode()
        elif field.message_type is None:
            plain[field.name] = value
        elif isinstance(value, Message):
            plain[field.name] = to_plain(value)
        else:
            plain[field.name] = [to_plain(entry) for entry in value]
    return plain


def to_table(reply: pb.ClusterStatusReply) -> Group:
    """Returns what a person sees."""
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        is_number = column not in ("instance", "role", "state", "target", "sent by")
        table.add_column(column, justify="right" if is_number else "left")
    for status in sorted(reply.instances, key=lambda entry: (entry.role, entry.instance)):
        table.add_row(*_row(status))
    head = f"{len(reply.instances)} instances, caching {reply.caching or '-'}"
    if reply.policy:
        head += f", policy {reply.policy}, {reply.routed} requests routed"
    if reply.HasField("planner"):
        head += f"\n{_planner(reply.planner)}"
    fallen = [
        f"{status.instance}: {each.op} runs as XLA: {each.reason}"
        for status in reply.instances
        for each in status.kernel_fallbacks
    ]
    return Group(head, table, *fallen)


def _planner(status: pb.PlannerStatus) -> str:
    sides = ", ".join(
        f"{name} waits {wait_s:.2f} s, {usage:.0%} used"
        for name, wait_s, usage in (
            ("prefill", status.prefill_wait_s, status.prefill_usage),
            ("decode", status.decode_wait_s, status.decode_usage),
        )
    )
    failed = f" ({status.moves_failed} failed)" if status.moves_failed else ""
    last = f", last {status.last_move}" if status.last_move else ""
    why = f"{status.verdict}: {status.why}" if status.verdict else "has not looked yet"
    return f"planner: {why}\n  {sides}; {status.moves} moves{failed}{last}"


def _row(status: pb.InstanceStatus) -> list[str]:
    tiers = {tier.tier: tier for tier in status.tiers}
    counters = status.counters
    return [
        status.instance,
        status.role,
        status.state,
        status.target,
        str(status.tensor_parallelism),
        str(status.running),
        str(status.waiting),
        _blocks(tiers.get("hbm")),
        _blocks(tiers.get("host")),
        _blocks(tiers.get("disk")),
        _share(counters.cached_tokens, counters.prompt_tokens),
        str(counters.output_tokens),
        f"{counters.kv_blocks_sent} ({_size(float(counters.kv_bytes_sent))})",
        f"{counters.kv_blocks_received} ({_size(float(counters.kv_bytes_received))})",
        ", ".join(map(_transport, status.transports)) or "-",
    ]


def _blocks(tier: pb.TierStatus | None) -> str:
    """Blocks in use of all, and how many of those are cached prefixes, and how many pinned."""
    if tier is None or not tier.num_blocks:
        return "-"
    used = tier.num_blocks - tier.free_blocks
    pinned = f", {tier.pinned_blocks} pinned" if tier.pinned_blocks else ""
    return f"{used}/{tier.num_blocks} ({tier.indexed_blocks} cached{pinned})"


def _transport(status: pb.TransportStatus) -> str:
    """Its calls, and how fast they were."""
    if not status.calls:
        return status.transport
    speed = f", {_size(status.bytes / status.seconds)}/s" if status.seconds else ""
    return f"{status.transport} ({status.calls} calls{speed})"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
