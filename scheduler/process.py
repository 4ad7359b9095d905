"""The scheduler as a process of its own: from a config to exit."""

import asyncio
import logging
import signal
from collections.abc import Callable

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.config import Config, to_mapping
from memserve_jax.core.credentials import credentials_of
from memserve_jax.core.embedded import embedded_model_path
from memserve_jax.core.model_card import ModelCard, load_card
from memserve_jax.core.tokenizer import Tokenizer, load_tokenizer
from memserve_jax.proto.server import address, check_address
from memserve_jax.telemetry.process_telemetry import open_telemetry
from scheduler.server import SchedulerServer

DRAIN_S = 30.0  # what requests in flight are given after the first signal

_log = logging.getLogger(__name__)


def run(config: Config, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal cancels what is left.

    Args:
      config: The deployment; of the model only tokenizer and configuration are read.
      announce: Given the line `ready grpc=HOST:PORT` once the scheduler listens.

    Raises:
      CheckpointError: the model directory cannot be read.
      ConfigError: the port is in use, or the host is not of this machine.
    """
    _log.info("config: %s", to_mapping(config))
    path = config.model.path or embedded_model_path()
    asyncio.run(_serve(config, load_card(path), load_tokenizer(path), announce))


async def _serve(
    config: Config, card: ModelCard, tokenizer: Tokenizer, announce: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    # Before anything listens.
    check_address(config.host, config.port, credentials_of(config.security))
    telemetry = open_telemetry(config, "scheduler")
    try:
        server = SchedulerServer(config, card, tokenizer, SystemClock(), telemetry=telemetry)
        announce(f"ready grpc={address(config.host, await server.start())}")
        await _drain_at_signal(server, signals)
    finally:
        await telemetry.close()


async def _drain_at_signal(
    server: SchedulerServer, signals: "asyncio.Queue[signal.Signals]"
) -> None:
    _log.info("stopping: %s", (await signals.get()).name)
    stopping = asyncio.create_task(server.stop(DRAIN_S))
    again = asyncio.create_task(signals.get())
    await asyncio.wait((stopping, again), return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        _log.info("stopping at once: %s", again.result().name)
        await server.stop(0.0)
    again.cancel()
    await stopping
