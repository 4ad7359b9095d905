"""The life of a server process, with the signals that end it."""

import asyncio
import os
import signal

import pytest

from memserve_jax.launch.process import DRAIN_S, run_until_signal


class Server:
    """Notes how it was stopped; `lingers` until it is told a second time."""

    def __init__(self, *, lingers: bool = False):
        self.graces: list[float] = []
        self.lingers = lingers

    async def stop(self, grace_s: float) -> None:
        self.graces.append(grace_s)
        if self.lingers and len(self.graces) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            while len(self.graces) == 1:
                await asyncio.sleep(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals):
    server = Server()

    async def start() -> Server:
        return server

    run_until_signal(start, ready=lambda it: os.kill(os.getpid(), number))
    assert server.graces == [DRAIN_S]


def test_a_second_signal_ends_the_draining():
    server = Server(lingers=True)

    async def start() -> Server:
        return server

    run_until_signal(start, ready=lambda it: os.kill(os.getpid(), signal.SIGTERM))
    assert server.graces == [DRAIN_S, 0.0]


def test_a_signal_while_starting_gives_up():
    given_up = []

    async def start() -> Server:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.append(True)
            raise
        raise AssertionError

    run_until_signal(start, ready=lambda it: pytest.fail("it never was"))
    assert given_up == [True]


def test_a_server_that_ends_by_itself_is_stopped():
    server = Server()

    async def start() -> Server:
        return server

    async def ended(it: Server) -> None:
        assert it is server

    run_until_signal(start, ready=lambda it: None, ended=ended)
    assert server.graces == [DRAIN_S]


def test_what_ends_a_server_is_the_callers_error_once_it_has_stopped():
    server = Server()

    async def start() -> Server:
        return server

    async def ended(it: Server) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_until_signal(start, ready=lambda it: None, ended=ended)
    assert server.graces == [DRAIN_S]


def test_the_error_of_a_start_is_the_callers():
    async def start() -> Server:
        raise ValueError("no port")

    with pytest.raises(ValueError, match="no port"):
        run_until_signal(start, ready=lambda it: None)
