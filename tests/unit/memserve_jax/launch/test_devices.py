"""Devices of a process: as many as asked for, or a clear error."""

import signal

import jax
import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.launch import devices
from memserve_jax.launch.devices import acquire_devices
from memserve_jax.parallel.job import Job


def test_gives_the_first_devices():
    assert acquire_devices(2) == jax.devices()[:2]


def test_a_job_is_joined_before_the_devices_are_looked_at(monkeypatch: pytest.MonkeyPatch):
    joined: list[Job] = []
    handlers: list[object] = []

    def join(job: Job) -> None:
        joined.append(job)
        handlers.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setattr(devices, "join_job", join)
    job = Job(coordinator="h:1", process=0, num_processes=2)
    before = signal.getsignal(signal.SIGTERM)
    assert acquire_devices(1, job) == jax.local_devices()[:1]
    assert joined == [job]
    assert handlers == [signal.SIG_DFL]  # jax does not return for one of Python's
    assert signal.getsignal(signal.SIGTERM) is before


def test_too_few_devices_is_an_error():
    wanted = len(jax.devices()) + 1
    with pytest.raises(ConfigError, match=f"asks for {wanted}, this machine has"):
        acquire_devices(wanted)
