"""What bench commands have in common: lists of numbers, progress, reports on disk."""

import contextlib
import importlib
import pathlib
import types
from collections.abc import Callable, Iterator

import click
import rich.console
import rich.progress

from memserve_jax.core.errors import ConfigError, MemServeError

Progress = Callable[[int, int | None, str], None]  # done, total (None: not known), what


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Returns the numbers of `1,8,32`.

    Raises:
      ConfigError: `text` is no such list; names `option`.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option}: got {text!r}, allowed: whole numbers >= 1, as in 1,8,32")
    return tuple(int(part) for part in parts)


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """Shows a bar on stderr while the body runs; yields what moves it."""
    bar = rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        console=rich.console.Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(name)

        def move(done: int, total: int | None, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield move


def write_json(path: str, text: str) -> None:
    """Writes `text` to the file `path`, or to stdout where that is `-`.

    Raises:
      MemServeError: the file cannot be written.
    """
    if path == "-":
        click.echo(text)
        return
    try:
        pathlib.Path(path).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise MemServeError(f"--json {path}: cannot write: {error.strerror}") from None


def check_folders(json_path: str | None, plot_path: str | None) -> None:
    """Refuses a report that could not be written, before the run rather than after it.

    Raises:
      ConfigError: the folder of one of the files does not exist.
    """
    for option, path in (("--json", json_path), ("--plot", plot_path)):
        if path and path != "-" and not pathlib.Path(path).parent.is_dir():
            raise ConfigError(f"{option}: got {path!r}, allowed: a file in a folder that exists")


def load_plot(module: str) -> types.ModuleType:
    """Returns a module that draws, imported now: plots are an extra.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        raise ConfigError("--plot: matplotlib is not installed: pip install .[plot]") from None
