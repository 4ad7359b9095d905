"""`memserve scheduler`: the global scheduler as a process. Never loads jax."""

import click

from memserve_jax.cli.server_options import insecure_option, log_option, supervisor_option
from memserve_jax.core.config import load_config
from memserve_jax.launch.lifeline import end_with_parent
from memserve_jax.telemetry.logs import configure_logs
from scheduler.process import run


@click.command()
@click.option("--config", "path", type=click.Path(), help="YAML of the deployment.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a config key.")
@click.option("--model", help="Model directory: its tokenizer and limits are used.")
@click.option("--host", help="Address to listen on (127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port (50051); 0 picks one.")
@insecure_option
@log_option
@supervisor_option
def command(
    path: str | None,
    overrides: tuple[str, ...],
    model: str | None,
    host: str | None,
    port: int | None,
    insecure: bool | None,
    log_format: str | None,
    supervisor_pid: int | None,
) -> None:
    """Route requests to the instances that register here.

    Prints `ready grpc=HOST:PORT` once it listens. SIGTERM and SIGINT drain it for up to 30 s; a
    second one ends it at once.
    """
    if supervisor_pid is not None:
        end_with_parent(supervisor_pid)
    flags = {
        "model.path": model,
        "host": host,
        "port": port,
        "security.insecure": insecure,
        "log.format": log_format,
    }
    config = load_config(path, overrides=overrides, flags=flags)
    configure_logs(config.log, "scheduler")
    run(config, click.echo)
