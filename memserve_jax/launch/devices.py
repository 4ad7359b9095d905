"""The devices of a process. The one place that asks jax to emulate CPU devices."""

import contextlib
import os

import jax

from memserve_jax.core.errors import ConfigError


def acquire_devices(
    num_devices: int,
) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Returns the process's first `num_devices` devices.

    Where jax runs on the CPU and has not started yet, exactly that many CPU devices are
    emulated, unless the process has asked for more already. On any other platform emulated CPU
    devices do no harm: nothing uses them.

    Raises:
      ConfigError: there are fewer.
    """
    is_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_set and jax.config.jax_num_cpu_devices < num_devices:
        # RuntimeError: jax has started. It keeps the devices that it has.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", num_devices)
    devices = jax.devices()
    if len(devices) < num_devices:
        raise ConfigError(
            f"devices: the topology asks for {num_devices}, this machine has {len(devices)} "
            f"({devices[0].platform}), allowed: at most {len(devices)}, or `instances` that "
            f"name a device twice"
        )
    return devices[:num_devices]
