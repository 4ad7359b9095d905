"""`memserve bench engine`: the engine against a bare loop over the same step."""

import json
from typing import Any

import click
import rich.console

from memserve_jax.bench import engine
from memserve_jax.cli.bench_options import check_folders, progress_bar, whole_numbers, write_json
from memserve_jax.core.config import Config
from memserve_jax.launch.build import use_compile_cache


@click.command("engine")
@click.option("--batches", default="1,8,32", show_default=True, help="Rows, one run each.")
@click.option(
    "--prompt-tokens", type=click.IntRange(min=1), help="Context when the decoding starts."
)
@click.option("--steps", "num_steps", type=click.IntRange(min=1), help="Of each round.")
@click.option("--rounds", "num_rounds", type=click.IntRange(min=2), help="Medians over them.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]))
@click.option("--json", "json_path", help="Write the report as JSON; - is stdout.")
def command(batches: str, json_path: str | None, **values: Any) -> None:
    """Compare the engine's decode rate with a bare loop over the same jitted step.

    The model is the embedded one scaled to about 80M parameters, on the first device.
    """
    rows = whole_numbers("--batches", batches)
    check_folders(json_path, None)
    use_compile_cache(Config())
    given = {name: value for name, value in values.items() if value is not None}
    options = engine.EngineBenchOptions(batches=rows, **given)
    with progress_bar("engine") as progress:
        found = engine.run(options, progress=progress)
    rich.console.Console(stderr=json_path == "-", highlight=False).print(engine.table(found))
    if json_path:
        write_json(json_path, json.dumps(found.to_mapping(), indent=1))
