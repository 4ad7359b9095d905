"""`memserve route`: says why a route wins. Not there yet."""

from typing import NoReturn

import click

from memserve_jax.core.errors import ConfigError


@click.command()
@click.argument("prompt", required=False)
@click.option("--explain", is_flag=True, help="Show what every instance would cost.")
def command(prompt: str | None, explain: bool) -> NoReturn:
    """Say where PROMPT would go and why (not there yet)."""
    del prompt, explain
    raise ConfigError("not there yet: routes are explained with the scheduler issue")
