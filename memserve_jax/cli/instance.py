"""`memserve instance`: one instance as a process, for a scheduler elsewhere."""

import dataclasses

import click

from memserve_jax.cli.server_options import (
    config_options,
    load_given,
    say,
    supervisor_option,
    warm_up_progress,
)
from memserve_jax.core.config import Config
from memserve_jax.core.types import Role
from memserve_jax.launch.lifeline import end_with_parent
from memserve_jax.launch.process import run_until_signal
from memserve_jax.launch.solo import SoloInstance
from memserve_jax.parallel.job import Job


@click.command()
@click.option("--name", required=True, help="Its name in the cluster, such as c0.")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    required=True,
    help="What it does.",
)
@click.option(
    "--scheduler",
    "schedulers",
    required=True,
    multiple=True,
    metavar="HOST:PORT",
    help="Whom to register with; repeatable.",
)
@click.option(
    "--job",
    metavar="COORDINATOR,INDEX,COUNT",
    help="Join a job of COUNT processes, one of which serves COORDINATOR (HOST:PORT): INDEX 0.",
)
@supervisor_option
@config_options
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, default=0, help="Port to listen on. [default: any free one]")
def command(
    name: str,
    role: str,
    schedulers: tuple[str, ...],
    job: str | None,
    supervisor_pid: int | None,
    **options: object,
) -> None:
    """Run one instance until SIGTERM or SIGINT, or until it is drained.

    Prints one line, ready instance=NAME grpc=HOST:PORT, once it is registered.
    """
    if supervisor_pid is not None:
        end_with_parent(supervisor_pid)
    joined = None if job is None else Job.from_text(job)
    config = load_given(options, process=name)
    if options["tp"] is not None:
        config = dataclasses.replace(config, instances=())  # the flag goes before the file
    run_until_signal(
        lambda: _launch(config, name, Role(role), schedulers, joined),
        ready=lambda it: say(f"ready instance={name} grpc={it.target}"),
        ended=SoloInstance.ended,
    )


async def _launch(
    config: Config, name: str, role: Role, schedulers: tuple[str, ...], job: Job | None
) -> SoloInstance:
    with warm_up_progress() as progress:
        return await SoloInstance.launch(
            config, name=name, role=role, schedulers=schedulers, progress=progress, job=job
        )
