"""`memserve role`: changes the role of an instance. Not there yet."""

from typing import NoReturn

import click

from memserve_jax.core.errors import ConfigError


@click.command()
@click.argument("name")
@click.argument("role")
def command(name: str, role: str) -> NoReturn:
    """Change the role of instance NAME to ROLE (not there yet)."""
    raise ConfigError(
        f"not there yet: {name} cannot become {role}; roles change with the scheduler issue"
    )
