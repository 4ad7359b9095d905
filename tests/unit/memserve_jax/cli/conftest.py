"""A server to talk to, and the command line."""

import pytest

from tests.helpers.command_line import CommandLine
from tests.helpers.fake_server import fake_server


@pytest.fixture
def server():
    with fake_server() as fake:
        yield fake


@pytest.fixture
def memserve(monkeypatch, capsys):
    return CommandLine(monkeypatch, capsys)
