"""`memserve role`: changes the role of an instance."""

import click

from memserve_jax.cli.credential_options import connect
from memserve_jax.cli.options import target_option
from memserve_jax.core.types import CachingMode, Role


@click.command()
@click.argument("name")
@click.argument("role", type=click.Choice([role.value for role in Role]))
@target_option
@click.option(
    "--caching",
    type=click.Choice([mode.value for mode in CachingMode]),
    help="Its caching mode; else as the other instances of such roles have it.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long it may finish what it has.",
)
@click.option("--force", is_flag=True, help="Even if it is the last of its role.")
def command(
    name: str, role: str, target: str, caching: str | None, timeout: float, force: bool
) -> None:
    """Give instance NAME another ROLE: it finishes what it has and goes on, its pool empty."""
    with connect(target) as client:
        reply = client.set_role(name, role, caching=caching, timeout_s=timeout, force=force)
    click.echo(f"{reply.instance} is a {reply.role} instance, caching {reply.caching}")
