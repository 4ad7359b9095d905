import sys

import click
from click.testing import CliRunner

from memserve_jax.cli.lazy_group import LazyGroup

TABLE = {"drain": ("memserve_jax.cli.drain", "Takes out."), "lost": ("no.such.module", "Never.")}


@click.group(cls=LazyGroup, table=TABLE)
def group():
    """A group."""


def test_listing_imports_nothing():
    sys.modules.pop("memserve_jax.cli.drain", None)
    result = CliRunner().invoke(group, ["--help"])
    assert "drain  Takes out." in result.output and "lost   Never." in result.output
    assert "memserve_jax.cli.drain" not in sys.modules


def test_a_chosen_command_is_imported():
    result = CliRunner().invoke(group, ["drain", "--help"])
    assert result.exit_code == 0, result.output
    assert "memserve_jax.cli.drain" in sys.modules


def test_an_unknown_command_is_answered_with_the_list():
    result = CliRunner().invoke(group, ["sing"])
    assert result.exit_code == 2
    assert "unknown command 'sing', allowed: drain, lost" in result.output
