"""Joining a `jax.distributed` job: processes whose devices one program can span."""

import logging
import os
from dataclasses import dataclass
from typing import NoReturn

import jax

from memserve_jax.core.errors import ConfigError

HEARTBEAT_S = 10  # a process not heard of for so long has died: all others are ended
GATHERING_S = 120  # for all processes to be there
LEAVING_S = 10  # for all to say that they leave
FAILED = 70  # exit status of a process that ended its job

_ALLOWED = "HOST:PORT,INDEX,COUNT with INDEX from 0 and below COUNT, as in 10.0.0.1:4000,0,2"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process's part in a job."""

    coordinator: str  # HOST:PORT, served by process 0; also the job's name
    process: int
    num_processes: int

    @classmethod
    def from_text(cls, text: str) -> "Job":
        """Returns what `memserve instance --job` was told: COORDINATOR,INDEX,COUNT.

        Raises:
          ConfigError: it is something else.
        """
        try:
            coordinator, index, count = text.split(",")
            host, separator, port = coordinator.rpartition(":")
            job = cls(coordinator=coordinator, process=int(index), num_processes=int(count))
            is_possible = host and separator and 0 < int(port) < 1 << 16
        except ValueError:
            is_possible, job = False, None
        if not is_possible or job is None or not 0 <= job.process < job.num_processes:
            raise ConfigError(f"--job: got {text!r}, allowed: {_ALLOWED}")
        return job


def join_job(job: Job) -> None:
    """Returns when every process of the job is there. Call it before anything else of jax.

    From then on `jax.devices()` are those of all processes, `jax.local_devices()` this one's.
    The job lives and dies as one: when a process ends without having left, jax ends all others
    with SIGABRT, `HEARTBEAT_S` later at most; one that is stopped needs SIGKILL. Leaving is for
    all at once: jax does it when the interpreter ends, and who is alone in that for `LEAVING_S`
    ends the job the same way.

    Raises:
      RuntimeError: jax's own, where not all come in time.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # the CPU's only one
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM away
    jax.distributed.initialize(
        job.coordinator,
        job.num_processes,
        job.process,
        initialization_timeout=GATHERING_S,
        heartbeat_timeout_seconds=HEARTBEAT_S,
        shutdown_timeout_seconds=LEAVING_S,
    )
    jax.devices()  # starts the backend, which waits for the backends of all processes


def fail_job(reason: str) -> NoReturn:
    """Ends this process at once, and so the job. Any thread may call it."""
    _log.critical("the job ends: %s", reason)
    os._exit(FAILED)


def leave_job() -> NoReturn:
    """Ends this process at once, as one that was told to; the rest of the job ends too."""
    _log.info("this process leaves its job, which ends with it")
    os._exit(0)
