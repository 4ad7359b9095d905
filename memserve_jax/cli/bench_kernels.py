"""`memserve bench kernels`: each op against the device's bounds, and the tuner of its tiles."""

import contextlib
import dataclasses
import json
import os
import pathlib
import types
from typing import Any

import click
import jax
import rich.console

from memserve_jax.bench.kernel_case import OPS, HeadShape, KernelGrid
from memserve_jax.bench.kernel_peer import TorchPeer
from memserve_jax.bench.kernel_table import notes, tables
from memserve_jax.bench.kernel_tune import check_platform, tune
from memserve_jax.bench.kernels import KernelBenchOptions, run
from memserve_jax.bench.random_model import load_shape
from memserve_jax.cli.bench_options import (
    check_folders,
    load_plot,
    progress_bar,
    whole_numbers,
    write_json,
)
from memserve_jax.core.config import Config
from memserve_jax.core.errors import ConfigError, MemServeError
from memserve_jax.launch.build import use_compile_cache
from memserve_jax.model.config import parse_model_config
from pallas_kernels import tuned_tiles
from pallas_kernels.device import device

SHARE = 0.8  # of the device's free memory that a case may take
QUICK = {"batches": (1, 4), "contexts": (128,), "pages": (16,)}


@click.command("kernels")
@click.option("--ops", default=",".join(OPS), show_default=True)
@click.option("--shapes", help="Named or YAML shapes. [llama3-8b,llama3-70b]")
@click.option("--batches", help="Rows. [1,16,64,256]")
@click.option("--contexts", help="Tokens of each row. [128,1024,4096,8192,32768]")
@click.option("--pages", help="Tokens of a page. [16,32,64]")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="By platform.")
@click.option("--rounds", "num_rounds", type=click.IntRange(min=2), help="Of each case. [5]")
@click.option("--quick", is_flag=True, help="Few small cases: does it work?")
@click.option("--torch-python", help="An interpreter with torch: its attention beside ours.")
@click.option("--tune", "tunes", is_flag=True, help="Time tiles instead, and keep the fastest.")
@click.option("--json", "json_path", help="Write the report as JSON; - is stdout.")
@click.option("--plot", "plot_path", help="Write a roofline PNG (needs the extra `plot`).")
def command(
    ops: str,
    shapes: str | None,
    dtype: str | None,
    num_rounds: int | None,
    quick: bool,
    torch_python: str | None,
    tunes: bool,
    json_path: str | None,
    plot_path: str | None,
    **sizes: str | None,
) -> None:
    """Time each op in all its forms beside a copy and a matrix product of the same minutes.

    With --tune, time the tiles of the kernels that have some on this device instead, and write
    the fastest to pallas_kernels/tuned/.
    """
    plot = load_plot("memserve_jax.bench.kernel_plot") if plot_path else None
    check_folders(json_path, plot_path)
    if tunes:
        check_platform()
    use_compile_cache(Config())
    given = {name: whole_numbers(f"--{name}", text) for name, text in sizes.items() if text}
    usual = "llama3-8b" if quick else "llama3-8b,llama3-70b"
    grid = dataclasses.replace(
        KernelGrid(
            shapes=tuple(head_shape(name) for name in (shapes or usual).split(",")),
            dtype=dtype or ("float32" if device().platform == "cpu" else "bfloat16"),
            ops=_ops(ops),
        ),
        **(QUICK if quick else {}) | given,
    )
    options = KernelBenchOptions(cases=tuple(grid.cases()), memory_bytes=free_memory_bytes())
    if quick:
        options = dataclasses.replace(options, num_rounds=3, probe_bytes=64 << 20, probe_size=1024)
    options = dataclasses.replace(options, num_rounds=num_rounds or options.num_rounds)
    if tunes:
        _tune(options)
        return
    _bench(options, torch_python, plot, json_path, plot_path)


def _bench(
    options: KernelBenchOptions,
    torch_python: str | None,
    plot: types.ModuleType | None,
    json_path: str | None,
    plot_path: str | None,
) -> None:
    with contextlib.ExitStack() as stack, progress_bar("kernels") as progress:
        peers = [stack.enter_context(TorchPeer(torch_python))] if torch_python else []
        found = run(options, peers=peers, progress=progress)
    console = rich.console.Console(stderr=json_path == "-", highlight=False)
    for table in tables(found):
        console.print(table)
    for line in notes(found):
        console.print(line, soft_wrap=True)
    if json_path:
        write_json(json_path, json.dumps(found.to_mapping(), indent=1))
    if plot and plot_path:
        try:
            plot.write_plot(plot_path, found)
        except OSError as error:
            raise MemServeError(f"--plot {plot_path}: cannot write: {error.strerror}") from None


def _tune(options: KernelBenchOptions) -> None:
    reasons = {case: case.refusal(options.memory_bytes) for case in options.cases}
    for case, why in reasons.items():
        if why:
            click.echo(f"skipped: {case.name}: {why}")
    cases = [case for case, why in reasons.items() if why is None]
    with progress_bar("tiles") as progress:
        found = tune(cases, tuned_tiles.FOLDER, progress=progress)
    for each in found:
        best = each.best
        click.echo(
            f"{each.case.name}: {best.us:.1f} µs, {each.first_us:.1f} before; {dict(best.tile)}; "
            f"{each.num_timed} tiles timed, {each.num_refused} refused"
        )
    click.echo(str(pathlib.Path(tuned_tiles.FOLDER) / tuned_tiles.file_of(device().kind)))


def head_shape(name: str) -> HeadShape:
    """Returns the heads of a named or YAML shape.

    Raises:
      ConfigError: there is no such shape.
    """
    config = parse_model_config(load_shape(name), source=f"--shapes {name}")
    return HeadShape(
        name=pathlib.Path(name).stem,
        num_heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )


def free_memory_bytes() -> int:
    """Returns what a case may take on the first device: most of what is free there."""
    stats: dict[str, Any] = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(SHARE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return int(SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _ops(text: str) -> tuple[str, ...]:
    ops = tuple(text.split(","))
    if not set(ops) <= set(OPS):
        raise ConfigError(f"--ops: got {text!r}, allowed: some of {','.join(OPS)}")
    return ops
