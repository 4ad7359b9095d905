"""The console script `memserve`: picks a command and imports only its module.

The one lazy import of the code base: `memserve generate` never loads jax.
"""

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from memserve_jax.cli.lazy_group import LazyGroup
from memserve_jax.client.errors import ClientError
from memserve_jax.core.errors import CheckpointError, ConfigError, MemServeError
from memserve_jax.core.malloc import restart_with_tunables

_FOLDER = "memserve_jax.cli"
LOADING_JAX = ("serve", "instance", "bench")
COMMANDS = {  # command -> module, what it does
    "serve": (f"{_FOLDER}.serve", "Serves a whole local cluster."),
    "scheduler": (f"{_FOLDER}.scheduler", "Runs the global scheduler of a cluster."),
    "instance": (f"{_FOLDER}.instance", "Runs one instance of a cluster."),
    "generate": (f"{_FOLDER}.generate", "Streams the answer to one prompt."),
    "chat": (f"{_FOLDER}.chat", "Talks, turn by turn."),
    "status": (f"{_FOLDER}.status", "Shows instances, pools, hit rates and KV moved."),
    "drain": (f"{_FOLDER}.drain", "Takes an instance out gently."),
    "role": (f"{_FOLDER}.role", "Changes the role of an instance."),
    "route": (f"{_FOLDER}.route", "Says where a prompt would go, and why."),
    "bench": (f"{_FOLDER}.bench", "Measures."),
    "convert": (f"{_FOLDER}.convert", "Turns a Hugging Face checkpoint into an Orbax one."),
}


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="memserve-jax", prog_name="memserve")
def _memserve() -> None:
    """LLM serving with context caching and disaggregated prefill and decode, in JAX."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and ends the process.

    Exits 0 if all went well; 2 for a usage, config or checkpoint error, 1 for any other error,
    each with one line on stderr; 130 if interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = " ".join(["memserve", *given[:1]]) if given and given[0] in COMMANDS else "memserve"
    if arguments is None and given[:1] and given[0] in LOADING_JAX:
        restart_with_tunables()
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    for package in ("memserve_jax", "scheduler"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        result = _memserve.main(given or ["--help"], prog_name="memserve", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _end(2, context.command_path if context else name, error.format_message())
    except (ConfigError, CheckpointError) as error:
        _end(2, name, str(error))
    except (ClientError, MemServeError) as error:
        _end(1, name, str(error))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads any more; the interpreter's own flush stays silent
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)


def _end(status: int, name: str, message: str) -> NoReturn:
    click.echo(f"{name}: {' '.join(message.split())}", err=True)
    sys.exit(status)
