"""Devices of a process: as many as asked for, or a clear error."""

import jax
import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.launch.devices import acquire_devices


def test_gives_the_first_devices():
    assert acquire_devices(2) == jax.devices()[:2]


def test_too_few_devices_is_an_error():
    wanted = len(jax.devices()) + 1
    with pytest.raises(ConfigError, match=f"asks for {wanted}, this machine has"):
        acquire_devices(wanted)
