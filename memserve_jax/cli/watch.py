"""A cluster looked at again and again: how fast it works between two looks."""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table

from memserve_jax.proto import memserve_pb2 as pb

_COLUMNS = (
    *("instance", "hit rate", "prefilled tok/s", "generated tok/s"),
    *("KV sent MB/s", "KV received MB/s", "metrics"),
)


@dataclass(frozen=True, slots=True)
class Look:
    """What the scheduler said, and when."""

    reply: pb.ClusterStatusReply
    now_s: float


def rates(before: Look | None, now: Look) -> RenderableType:
    """Returns a table of what each instance did between two looks; `-` where that is not known.

    An instance that is new, or lives a new life, is known from its second look on.
    """
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("instance", "metrics") else "right")
    known = {} if before is None else {_life(each): each for each in before.reply.instances}
    for status in sorted(now.reply.instances, key=lambda entry: (entry.role, entry.instance)):
        old = known.get(_life(status))
        seconds = 0.0 if before is None else now.now_s - before.now_s
        figures = ["-"] * 5 if old is None or seconds <= 0 else _figures(old, status, seconds)
        table.add_row(status.instance, *figures, status.metrics_target or "-")
    scheduler = f"metrics of the scheduler: {now.reply.metrics_target or '-'}"
    return Group("", "since the last look", table, scheduler)


def silent(target: str, why: str, last: RenderableType) -> RenderableType:
    """Returns what is shown while the scheduler does not answer: why, and what was seen last."""
    return Group(f"{target} does not answer: {why}; asking again. Seen last:", last)


def _life(status: pb.InstanceStatus) -> tuple[str, int]:
    return status.instance, status.epoch


def _figures(old: pb.InstanceStatus, new: pb.InstanceStatus, seconds: float) -> list[str]:
    before, after = old.counters, new.counters
    asked = after.prompt_tokens - before.prompt_tokens
    hits = after.cached_tokens - before.cached_tokens
    tokens = (
        after.prefill_tokens_computed - before.prefill_tokens_computed,
        after.output_tokens - before.output_tokens,
    )
    moved = (
        after.kv_bytes_sent - before.kv_bytes_sent,
        after.kv_bytes_received - before.kv_bytes_received,
    )
    return [
        f"{hits / asked:.0%}" if asked else "-",
        *(f"{count / seconds:.0f}" for count in tokens),
        *(f"{count / seconds / 1e6:.1f}" for count in moved),
    ]
