"""What `bench transfer` found, as a table."""

import rich.box
import rich.table

from memserve_jax.bench.transfer_case import TransferReport

WIDTH = 132  # columns of a terminal that hold it


def table(report: TransferReport) -> rich.table.Table:
    """Returns the report as a table: the bounds first, then a line per case."""
    title = f"KV between instances, jax {report.jax_version}, medians of {report.num_rounds} rounds"
    shown = rich.table.Table(title=title, box=rich.box.SIMPLE)
    for heading in ("transport", "what", "ends", "tiers"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("blocks", "MiB", "calls", "ms", "±", "GB/s", "/memcpy", "/socket"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for bound in report.bounds:
        for name, seconds, spread in (
            ("memcpy", bound.copy_s, bound.copy_spread),
            ("one socket", bound.socket_s, bound.socket_spread),
        ):
            shown.add_row(name, "", "", "", "", *_numbers(bound.num_bytes, "", seconds, spread))
    shown.add_section()
    for found in report.found:
        case = found.case
        shown.add_row(
            case.transport,
            "scattered" if case.is_scattered else "whole" if case.is_whole else "put",
            case.shape.name,
            f"{case.source}->{case.target}",
            str(case.num_blocks),
            *_numbers(case.num_bytes, str(found.num_calls), found.seconds, found.spread),
            f"{found.times_copy:.2f}",
            f"{found.times_socket:.2f}",
        )
    return shown


def _numbers(num_bytes: int, num_calls: str, seconds: float, spread: float) -> list[str]:
    return [
        f"{num_bytes / 2**20:.2f}",
        num_calls,
        f"{seconds * 1e3:.3f}",
        f"{spread:.0%}",
        f"{num_bytes / seconds / 1e9:.2f}",
    ]
