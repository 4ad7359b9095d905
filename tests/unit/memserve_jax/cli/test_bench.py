import subprocess
import sys

import pytest
from click.testing import CliRunner

from memserve_jax.cli.bench import COMING, COMMANDS, command
from memserve_jax.core.errors import ConfigError


def bench(*arguments):
    return CliRunner().invoke(command, list(arguments))


@pytest.mark.parametrize("name", sorted(COMING))
def test_what_is_to_come_says_so(name):
    result = bench(name, "--some", "option")
    assert isinstance(result.exception, ConfigError)
    assert f"bench {name}: not there yet: comes with" in str(result.exception)


def test_the_list_names_every_command_once():
    listed = bench("--help").output
    assert not set(COMING) & set(COMMANDS)
    for name in (*COMING, *COMMANDS):
        assert f"\n  {name} " in listed


def test_loading_a_server_needs_no_jax():
    code = (
        "import sys; from memserve_jax.cli.bench import command\n"
        "try: command(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
