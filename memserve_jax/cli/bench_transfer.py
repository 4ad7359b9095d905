"""`memserve bench transfer`: how fast KV moves between instances."""

import dataclasses
import json

import click
import rich.console

from memserve_jax.bench.transfer import TransferBenchOptions, run
from memserve_jax.bench.transfer_case import COUNTS, SHAPES, TRANSPORTS
from memserve_jax.bench.transfer_table import WIDTH, table
from memserve_jax.cli.bench_options import (
    check_folders,
    load_plot,
    progress_bar,
    whole_numbers,
    write_json,
)
from memserve_jax.cli.bench_transfer_modes import run_modes
from memserve_jax.core.errors import ConfigError, MemServeError


@click.command("transfer")
@click.option("--transports", default=",".join(TRANSPORTS), show_default=True)
@click.option("--counts", default=",".join(map(str, COUNTS)), show_default=True, help="Blocks.")
@click.option(
    "--shapes",
    type=click.IntRange(1, len(SHAPES)),
    default=len(SHAPES),
    show_default=True,
    help=f"The first so many of {', '.join(shape.name for shape in SHAPES)}.",
)
@click.option("--modes", is_flag=True, help="Compare the transfer modes instead (figures 11, 12).")
@click.option("--rates", default="1,2,4,8", show_default=True, help="--modes: requests a second.")
@click.option(
    "--num-requests",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    help="--modes: at each rate.",
)
@click.option("--rounds", type=click.IntRange(min=2), default=7, show_default=True)
@click.option("--json", "json_path", help="Write the report as JSON; - is stdout.")
@click.option("--plot", "plot_path", help="Write a PNG (needs the extra `plot`).")
def command(
    transports: str,
    counts: str,
    shapes: int,
    modes: bool,
    rates: str,
    num_requests: int,
    rounds: int,
    json_path: str | None,
    plot_path: str | None,
) -> None:
    """Time every transport, between devices of one process or between two processes.

    A put is the transport alone; a whole transfer goes from blocks in one pool to blocks in the
    other, through reserve, gather, put, scatter and commit. Beside them stand numpy's copy and a
    bare TCP stream with the same bytes, timed in turns with them.

    With --modes: calls and time to move the KV of a prompt by layer, by request and aggregated,
    then latencies against request rates of a server in each mode, `auto` too.
    """
    if modes:
        check_folders(json_path, plot_path)
        run_modes(
            rounds=rounds,
            rates=rates,
            num_requests=num_requests,
            json_path=json_path,
            plot_path=plot_path,
        )
        return
    plot = load_plot("memserve_jax.bench.transfer_plot") if plot_path else None
    check_folders(json_path, plot_path)
    options = TransferBenchOptions(
        transports=_transports(transports),
        shapes=SHAPES[:shapes],
        counts=whole_numbers("--counts", counts),
        num_rounds=rounds,
    )
    with progress_bar("transfer") as progress:
        report = run(options, progress)
    console = rich.console.Console(stderr=json_path == "-", highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table(report))
    if json_path:
        write_json(json_path, json.dumps(dataclasses.asdict(report), indent=1))
    if plot and plot_path:
        try:
            plot.write_plot(plot_path, report)
        except OSError as error:
            raise MemServeError(f"--plot {plot_path}: cannot write: {error.strerror}") from None


def _transports(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in TRANSPORTS:
            allowed = ", ".join(TRANSPORTS)
            raise ConfigError(f"--transports: got {name!r}, allowed: {allowed}")
    return names
