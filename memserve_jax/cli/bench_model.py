"""`memserve bench model`: a whole model against the device's bounds, and against peers."""

import contextlib
import json
import os
import pathlib

import click
import jax
import rich.console

from memserve_jax.bench.model import ModelBenchOptions, run
from memserve_jax.bench.model_table import table
from memserve_jax.bench.peer_engine import SCRIPTS, PeerEngine
from memserve_jax.bench.random_model import load_shape, random_bundle, random_checkpoint
from memserve_jax.cli.bench_options import check_folders, progress_bar, whole_numbers, write_json
from memserve_jax.core.config import Config
from memserve_jax.core.errors import ConfigError
from memserve_jax.launch.build import use_compile_cache
from memserve_jax.model.bundle import ModelBundle
from memserve_jax.model.config import parse_model_config
from memserve_jax.model.loader import default_dtype, load_model
from memserve_jax.parallel.mesh import make_mesh


@click.command("model")
@click.option("--shape", default="llama-26m", show_default=True, help="Named or YAML shape.")
@click.option("--model", "folder", type=click.Path(), help="A checkpoint instead of a shape.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="By platform.")
@click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, help="Devices.")
@click.option("--prefill", default="480,992", show_default=True, help="Prompt lengths.")
@click.option("--batches", default="1,8", show_default=True, help="Rows that decode.")
@click.option("--context", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--rounds", type=click.IntRange(min=2), default=7, show_default=True)
@click.option("--baseline", help=f"On the same checkpoint, CPU only: {','.join(SCRIPTS)}.")
@click.option("--baseline-python", default="", help="NAME=PATH,...: interpreters that have them.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the baselines. [all cores]")
@click.option("--json", "json_path", help="Write the report as JSON; - is stdout.")
def command(
    shape: str,
    folder: str | None,
    dtype: str | None,
    tp: int,
    prefill: str,
    batches: str,
    context: int,
    rounds: int,
    baseline: str | None,
    baseline_python: str,
    threads: int | None,
    json_path: str | None,
) -> None:
    """Time prefill and decode of a whole model, with random weights of a named shape.

    Beside each time stand the device's own bound (memory for decode, arithmetic for prefill) and
    the times of other engines on the same checkpoint, all measured in turns.
    """
    check_folders(json_path, None)
    options = ModelBenchOptions(
        prefills=whole_numbers("--prefill", prefill),
        batches=whole_numbers("--batches", batches),
        context=context,
        num_rounds=rounds,
    )
    names = [name for name in (baseline or "").split(",") if name]
    if names and folder is None:
        folder = random_checkpoint(load_shape(shape))
    use_compile_cache(Config())
    bundle = _bundle(shape, folder, dtype, tp)
    with contextlib.ExitStack() as stack, progress_bar("model") as progress:
        pythons = _pythons(baseline_python)
        peers = [
            stack.enter_context(
                PeerEngine(
                    name,
                    python=pythons.get(name, ""),
                    folder=folder or "",
                    threads=threads or os.cpu_count() or 1,
                    dtype=bundle.dtype,
                )
            )
            for name in names
        ]
        shown = pathlib.Path(folder).name if folder and not names else shape
        found = run(bundle, options, shape=shown, peers=peers, progress=progress)
    rich.console.Console(stderr=json_path == "-", highlight=False).print(table(found))
    if json_path:
        write_json(json_path, json.dumps(found.to_mapping(), indent=1))


def _bundle(shape: str, folder: str | None, dtype: str | None, tp: int) -> ModelBundle:
    devices = jax.devices()
    if tp > len(devices):
        raise ConfigError(f"--tp: got {tp}, allowed: 1 to {len(devices)}, the devices here")
    mesh = make_mesh(devices[:tp], tp)
    if folder is not None:
        return load_model(folder, mesh=mesh, dtype=dtype)
    config = parse_model_config(load_shape(shape), source=f"--shape {shape}")
    return random_bundle(config, mesh=mesh, dtype=dtype or default_dtype(mesh))


def _pythons(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    for name, equals, path in pairs:
        if name not in SCRIPTS or not equals or not path:
            raise ConfigError(
                f"--baseline-python: got {text!r}, allowed: NAME=PATH,... of {', '.join(SCRIPTS)}"
            )
    return {name: path for name, _, path in pairs}
