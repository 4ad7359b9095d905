"""From config to exit: says when it listens, and a signal ends it."""

import os
import signal
import socket

import pytest

from memserve_jax.core.config import parse_config
from memserve_jax.core.errors import CheckpointError, ConfigError
from scheduler.process import run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_announces_its_port_and_ends_with_a_signal(number):
    lines = []

    def announce(line: str) -> None:
        lines.append(line)
        port = int(line.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            os.kill(os.getpid(), number)

    run(parse_config({"port": 0}), announce)
    (line,) = lines
    assert line.startswith("ready grpc=127.0.0.1:")


def test_what_cannot_be_served_is_said_before_anything_listens():
    with pytest.raises(CheckpointError, match="/no/such/model"):
        run(parse_config({"model": {"path": "/no/such/model"}}), print)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port: {port} is in use"):
            run(parse_config({"port": port}), print)
