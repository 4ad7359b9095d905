"""`memserve drain`: takes an instance out gently."""

import click

from memserve_jax.cli.credential_options import connect
from memserve_jax.cli.options import target_option


@click.command()
@click.argument("name")
@target_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long it may finish what it has.",
)
@click.option("--force", is_flag=True, help="Even if it is the last of its role.")
def command(name: str, target: str, timeout: float, force: bool) -> None:
    """Take instance NAME out: no new requests, those it has finish, then it leaves."""
    with connect(target) as client:
        client.drain(name, timeout_s=timeout, force=force)
    click.echo(f"drained {name}")
