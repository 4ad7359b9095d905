"""What the server commands share: options that fill the config, and what they say."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click
import rich.console
import rich.progress

from memserve_jax.core.config import Config, load_config
from memserve_jax.core.types import CachingMode
from memserve_jax.telemetry.logs import configure_logs

_DOTTED = {  # an option's config key, where the names differ
    "model": "model.path",
    "insecure": "security.insecure",
    "log_format": "log.format",
}


def config_options(function: Any) -> Any:
    """Adds the options that every server command has."""
    for option in reversed(
        [
            click.option("--model", metavar="DIR", help="Hugging Face or converted directory."),
            click.option(
                "--config", metavar="FILE", help="YAML of the whole deployment; see configs/."
            ),
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="A.B=C",
                help="One config key; repeatable; goes before the file, behind flags.",
            ),
            click.option(
                "--caching",
                metavar="MODE",
                help=f"{', '.join(CachingMode)}. [default: on, or pd_caching_3 with NpMd]",
            ),
            click.option("--tp", type=int, help="Devices an instance. [default: 1]"),
            insecure_option,
            log_option,
        ]
    ):
        function = option(function)
    return function


def insecure_option(function: Any) -> Any:
    """Adds `--insecure`; None where it is not given, so that the file decides."""
    return click.option(
        "--insecure", is_flag=True, default=None, help="Plain text on other than loopback too."
    )(function)


def log_option(function: Any) -> Any:
    """Adds `--log-format`."""
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        help="Of stderr: lines, or a JSON object a line. [default: text]",
    )(function)


def supervisor_option(function: Any) -> Any:
    """Adds what `memserve serve --processes` tells its children: whose end is theirs."""
    return click.option("--supervisor", "supervisor_pid", type=int, hidden=True)(function)


def load_given(options: Mapping[str, Any], *, process: str) -> Config:
    """Returns the config that `options` describe; from now on this process logs as it says.

    Args:
      options: As click gives them.
      process: Its name in the cluster, such as `p0`.

    Raises:
      ConfigError: an unreadable file, an unknown key, a wrong value.
    """
    flags = {
        _DOTTED.get(name, name): value
        for name, value in options.items()
        if name not in ("config", "overrides")
    }
    config = load_config(options["config"], overrides=options["overrides"], flags=flags)
    configure_logs(config.log, process)
    return config


def say(line: str) -> None:
    """Prints the one line of stdout."""
    click.echo(line)
    sys.stdout.flush()


@contextlib.contextmanager
def warm_up_progress() -> Iterator[Callable[[int, int, str], None] | None]:
    """Yields what to tell of warm-up: a bar on stderr where that is a terminal, else None."""
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    bar = rich.progress.Progress(console=console, transient=True)
    task = bar.add_task("warming up")

    def tell(done: int, total: int, what: str) -> None:
        bar.update(task, completed=done, total=total, description=f"warming up: {what}")

    with bar:
        yield tell
