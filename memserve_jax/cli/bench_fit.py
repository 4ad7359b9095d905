"""`memserve bench fit`: the cost model of this device and one model, into a file."""

import pathlib
import re
import tempfile
from collections.abc import Callable

import click
import jax
import rich.console
import yaml

from memserve_jax.bench import fit
from memserve_jax.bench.fit_engine import FitEngine
from memserve_jax.bench.fit_fetch import FetchFit, fit_fetch, measure_fetches
from memserve_jax.bench.fit_table import errors_table, operators_table
from memserve_jax.bench.random_model import load_shape, random_checkpoint
from memserve_jax.cli.bench_options import progress_bar, whole_numbers
from memserve_jax.core.config import Config, load_config
from memserve_jax.core.cost_file import to_values
from memserve_jax.core.embedded import embedded_model_path
from memserve_jax.core.errors import ConfigError, MemServeError
from memserve_jax.core.model_card import load_card
from memserve_jax.launch.build import use_compile_cache

COSTS = pathlib.Path("configs/cost")
_FETCHES = (64, 256, 1024)  # tokens


@click.command("fit")
@click.option("--model", "folder", type=click.Path(), help="A checkpoint. [the embedded one]")
@click.option("--shape", help="Random weights of a named or YAML shape instead.")
@click.option("--config", "path", type=click.Path(), help="YAML: the engine as it serves.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a config key.")
@click.option("--fitted", help="Prompt lengths to fit to.")
@click.option("--held-out", help="Prompt lengths to report errors on.")
@click.option("--rounds", type=click.IntRange(min=5), default=7, show_default=True)
@click.option(
    "--fetch/--no-fetch", default=True, show_default=True, help="Time fetches from peers."
)
@click.option("--out", type=click.Path(), help=f"The file. [{COSTS}/DEVICE-MODEL.yaml]")
def command(
    folder: str | None,
    shape: str | None,
    path: str | None,
    overrides: tuple[str, ...],
    fitted: str | None,
    held_out: str | None,
    rounds: int,
    fetch: bool,
    out: str | None,
) -> None:
    """Fit what prefills and fetches cost on this device, and write it for `scheduler.cost.path`.

    Prefills are timed in the engine that serves, with 0, 25 and 50 % of each prompt cached.
    Errors are reported on lengths that were not fitted, beside those of a fit to the lengths
    alone, and beside the noise of the machine.
    """
    config = load_config(path, overrides=overrides)
    use_compile_cache(config)
    model, name = _model(config, folder, shape)
    target = pathlib.Path(out) if out else COSTS / f"{_device_word()}-{_word(name)}.yaml"
    if not target.parent.is_dir():
        raise ConfigError(f"--out: got {target}, allowed: a file in a folder that exists")
    lengths = whole_numbers("--fitted", fitted) if fitted else fit.FITTED
    others = whole_numbers("--held-out", held_out) if held_out else fit.HELD_OUT
    lengths, others = _fitting(config, model, (lengths, others))
    engine = FitEngine(model, config, most_tokens=max(*lengths, *others))
    with progress_bar("fit") as progress:
        points = fit.measure(
            engine, lengths=(*lengths, *others), num_rounds=rounds, progress=progress
        )
        found = fit.fit_prefill(points, others, rungs=engine.rungs, tp=config.tp)
        fetched = _usual_fetch(config)
        if fetch:
            fetched = _fetches(model, overrides, rounds, lambda what: progress(0, None, what))
    of = fit.Fitted(model=name, dtype=engine.dtype, context_tokens=engine.max_context_tokens)
    values = to_values(fit.to_cost_file(found, fetched, config, of))
    _write(target, yaml.safe_dump(values, sort_keys=False))
    console = rich.console.Console(highlight=False)
    parameters = f"{engine.num_parameters / 1e6:.0f}M parameters, {engine.dtype}"
    title = f"Mean error of prefill seconds: {name}, {parameters}, {fit.device_name()}"
    console.print(errors_table(found, title=f"{title}, jax {jax.__version__}"))
    console.print(operators_table(found, fetched))
    console.print(f"written: {target}", markup=False)


def _model(config: Config, folder: str | None, shape: str | None) -> tuple[str, str]:
    """Returns the directory of the model, and what to call it."""
    if folder is not None and shape is not None:
        raise ConfigError(f"--shape: got {shape!r} and --model, allowed: one of them")
    if shape is not None:
        return random_checkpoint(load_shape(shape)), pathlib.Path(shape).stem
    path = folder or config.model.path
    if path is None:
        return embedded_model_path(), "embedded"
    return path, load_card(path).name


def _fitting(
    config: Config, model: str, lengths: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the lengths that the model's context has room for, one token of answer included."""
    context = config.engine.max_context_tokens or load_card(model).max_context_tokens
    fitted, others = (tuple(each for each in some if each < context) for some in lengths)
    if not fitted or not others:
        raise ConfigError(f"--fitted, --held-out: allowed: lengths below the context, {context}")
    if set(fitted) & set(others):
        both = ", ".join(str(each) for each in sorted(set(fitted) & set(others)))
        raise ConfigError(f"--held-out: got {both}, allowed: lengths that are not fitted")
    return fitted, others


def _fetches(
    model: str, overrides: tuple[str, ...], rounds: int, told: Callable[[str], None]
) -> FetchFit:
    arguments = ["--model", model]
    for override in overrides:
        arguments += ["--set", override]
    with tempfile.TemporaryDirectory() as folder:
        transport, points = measure_fetches(
            arguments,
            lengths=_FETCHES,
            num_rounds=rounds,
            folder=pathlib.Path(folder),
            told=told,
        )
    return fit_fetch(points, transport=transport)


def _usual_fetch(config: Config) -> FetchFit:
    cost = config.scheduler.cost
    return FetchFit(
        transport="not measured",
        fixed_s=cost.fetch_fixed_s,
        bytes_per_s=cost.fetch_bytes_per_s,
        error=0.0,
    )


def _device_word() -> str:
    device = jax.devices()[0]
    return "cpu" if device.platform == "cpu" else _word(device.device_kind)


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _write(path: pathlib.Path, text: str) -> None:
    head = "# Fitted by `memserve bench fit`; used where `scheduler.cost.path` names it.\n"
    try:
        path.write_text(head + text, encoding="utf-8")
    except OSError as error:
        raise MemServeError(f"--out {path}: cannot write: {error.strerror}") from None
