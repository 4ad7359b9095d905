"""The console script: help, one clear line on error, the right exit status."""

import click
import pytest

from memserve_jax import cli
from memserve_jax.client.errors import ClientError
from memserve_jax.core.errors import CheckpointError, ConfigError, OverloadedError


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_every_command(memserve, arguments):
    ended = memserve(*arguments)
    assert ended.status == 0
    for name in cli.COMMANDS:
        assert f"  {name} " in ended.out


def test_the_version(memserve):
    assert memserve("--version").out.startswith("memserve, version ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sevre"], "memserve: unknown command 'sevre', allowed: serve, scheduler, "),
        (["--frobnicate"], "memserve: No such option"),
        (["generate", "--max-toks", "3", "hi"], "memserve generate: No such option '--max-toks'"),
        (["generate", "--max-tokens", "x", "hi"], "memserve generate: Invalid value for"),
        (["drain"], "memserve drain: Missing argument 'NAME'"),
        (["drain", "a", "b"], "memserve drain: Got unexpected extra argument"),
        (["role", "p0", "router"], "memserve role: Invalid value for '{prefill|decode|colo"),
        (["route", "--explain"], "memserve route: PROMPT: got nothing, allowed: a text"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(memserve, arguments, line):
    ended = memserve(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(line)
    assert ended.err.count("\n") == 1


def test_a_group_without_a_command_shows_its_help(memserve):
    ended = memserve("bench")
    assert ended.status == 2
    assert "\nUsage: memserve bench" in f"\n{ended.err}"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("c.yaml: port: got 1\n2"), 2),
        (CheckpointError("/m: no such directory"), 2),
        (OverloadedError("full"), 1),
        (ClientError("UNAVAILABLE", "no instance"), 1),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
)
def test_our_errors_are_one_line(memserve, monkeypatch, error, status):
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: failing)
    ended = memserve("status")
    assert ended.status == status
    if status != 130:
        assert ended.err == f"memserve status: {' '.join(str(error).split())}\n"


def test_a_reader_that_went_away_is_no_traceback(memserve, monkeypatch):
    @click.command()
    def failing() -> None:
        raise BrokenPipeError

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: failing)
    monkeypatch.setattr("sys.stderr.close", lambda: None, raising=False)
    assert memserve("status").status == 1
