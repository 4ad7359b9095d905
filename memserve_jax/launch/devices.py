"""The devices of a process. The one place that asks jax to emulate CPU devices."""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax

from memserve_jax.core.errors import ConfigError
from memserve_jax.parallel.job import Job, join_job


def acquire_devices(num_devices: int, job: Job | None = None) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Returns the process's first `num_devices` devices.

    Where jax runs on the CPU and has not started yet, exactly that many CPU devices are
    emulated, unless the process has asked for more already. On any other platform emulated CPU
    devices do no harm: nothing uses them.

    Args:
      num_devices: How many are wanted.
      job: To be joined before jax starts: returns when all its processes are there. Call it in
        the main thread then.

    Raises:
      ConfigError: there are fewer.
    """
    is_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_set and jax.config.jax_num_cpu_devices < num_devices:
        # RuntimeError: jax has started. It keeps the devices that it has.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", num_devices)
    if job is not None:
        with _deadly_signals():
            join_job(job)
    devices = jax.local_devices()
    if len(devices) < num_devices:
        raise ConfigError(
            f"devices: the topology asks for {num_devices}, this machine has {len(devices)} "
            f"({devices[0].platform}), allowed: at most {len(devices)}, or `instances` that "
            f"name a device twice"
        )
    return devices[:num_devices]


@contextlib.contextmanager
def _deadly_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGINT end the process: their handlers would wait for jax to return."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
