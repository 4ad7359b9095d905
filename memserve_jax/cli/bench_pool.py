"""`memserve bench pool`: the memory pool's microbenchmarks beside the paper's."""

import dataclasses
import json
from typing import Any

import click
import rich.console

from memserve_jax.bench import pool
from memserve_jax.bench.pool_table import tables
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


@click.command("pool")
@click.option(
    "--parts", default=",".join(pool.PARTS), show_default=True,
    help="calls: figure 9; index: figure 10; scale: by blocks cached; ttft: figure 13.",
)  # fmt: skip
@click.option("--rounds", "num_rounds", type=click.IntRange(min=2), help="Of figures 9 and 10.")
@click.option("--cached-blocks", help="Sizes of the index, each built up from the last.")
@click.option("--prompt-tokens", help="Lengths of figure 13's prompts.")
@click.option("--ttft-rounds", type=click.IntRange(min=1), help="Of figure 13.")
@click.option("--quick", is_flag=True, help="Small numbers of all: does it work?")
@click.option("--json", "json_path", help="Write the report as JSON; - is stdout.")
@click.option("--plot", "plot_path", help="Write a PNG (needs the extra `plot`).")
def command(
    parts: str,
    quick: bool,
    json_path: str | None,
    plot_path: str | None,
    cached_blocks: str | None,
    prompt_tokens: str | None,
    **values: Any,
) -> None:
    """Time the pool's calls, its index and what its tiers save, beside the paper's numbers.

    The first device is used. Figure 13's model is the embedded one scaled to about 80M parameters.
    """
    plot = load_plot("memserve_jax.bench.pool_plot") if plot_path else None
    check_folders(json_path, plot_path)
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if cached_blocks is not None:
        given["cached_blocks"] = whole_numbers("--cached-blocks", cached_blocks)
    if prompt_tokens is not None:
        given["prompt_tokens"] = whole_numbers("--prompt-tokens", prompt_tokens)
    chosen = _parts(parts)
    usual = pool.quick_options(chosen) if quick else pool.PoolBenchOptions(parts=chosen)
    use_compile_cache(Config())
    with progress_bar("pool") as progress:
        found = pool.run(dataclasses.replace(usual, **given), progress=progress)
    console = rich.console.Console(stderr=json_path == "-", highlight=False)
    for table in tables(found):
        console.print(table)
    if json_path:
        write_json(json_path, json.dumps(found.to_mapping(), indent=1))
    if plot and plot_path:
        try:
            plot.write_plot(plot_path, found)
        except OSError as error:
            raise MemServeError(f"--plot {plot_path}: cannot write: {error.strerror}") from None


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if not set(parts) <= set(pool.PARTS) or len(set(parts)) < len(parts):
        raise ConfigError(f"--parts: got {text!r}, allowed: some of {','.join(pool.PARTS)}")
    return parts
