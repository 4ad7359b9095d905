"""`memserve serve`: a whole cluster, in one process or in one each."""

import importlib
from typing import Any

import click

from memserve_jax.cli.server_options import config_options, load_given, say, warm_up_progress
from memserve_jax.core.config import Config
from memserve_jax.launch.process import run_until_signal
from memserve_jax.launch.process_cluster import launch_processes
from memserve_jax.launch.supervisor import Supervisor


@click.command()
@config_options
@click.option(
    "--topology", metavar="T", help="colocated (default), Nc (2c), or NpMd (1p1d, 2p1d, 1p2d)."
)
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 picks a free one. [default: 50051]")
@click.option("--processes", is_flag=True, help="A process for the scheduler and each instance.")
def command(processes: bool, **options: object) -> None:
    """Serve a model, or the embedded tiny one, on a cluster on this machine.

    Prints one line, ready grpc=HOST:PORT, once requests are served. SIGTERM or SIGINT drains
    for up to 30 s, then cancels what is left, and exits 0. With --processes one that dies is
    started again; where one fails five times in a row, all end, and the exit status is 1.
    """
    config = load_given(options, process="serve")
    if processes:
        run_until_signal(
            lambda: launch_processes(config), ready=_say_ready, ended=Supervisor.failed
        )
        return
    # Loads jax, which a process that only looks after others can do without.
    launch = importlib.import_module("memserve_jax.launch.local").LocalCluster.launch
    run_until_signal(lambda: _launch(launch, config), ready=_say_ready)


async def _launch(launch: Any, config: Config) -> Any:
    with warm_up_progress() as progress:
        return await launch(config, progress=progress)


def _say_ready(cluster: Any) -> None:
    say(f"ready grpc={cluster.target}")
