"""`memserve serve`: a whole cluster in one process."""

import click

from memserve_jax.cli.server_options import config_options, load_given, say, warm_up_progress
from memserve_jax.core.config import Config
from memserve_jax.core.errors import ConfigError
from memserve_jax.launch.local import LocalCluster
from memserve_jax.launch.process import run_until_signal


@click.command()
@config_options
@click.option(
    "--topology", metavar="T", help="colocated (default), Nc (2c), or NpMd (1p1d, 2p1d, 1p2d)."
)
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 picks a free one. [default: 50051]")
@click.option("--processes", is_flag=True, help="One process an instance (not there yet).")
def command(processes: bool, **options: object) -> None:
    """Serve a model, or the embedded tiny one, on a cluster in this process.

    Prints one line, ready grpc=HOST:PORT, once requests are served. SIGTERM or SIGINT drains
    for up to 30 s, then cancels what is left, and exits 0.
    """
    if processes:
        raise ConfigError("--processes: not there yet, allowed: one process for all instances")
    config = load_given(options)
    run_until_signal(lambda: _launch(config), ready=lambda it: say(f"ready grpc={it.target}"))


async def _launch(config: Config) -> LocalCluster:
    with warm_up_progress() as progress:
        return await LocalCluster.launch(config, progress=progress)
