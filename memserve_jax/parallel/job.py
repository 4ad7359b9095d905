"""Joining a `jax.distributed` job: processes whose devices one program can span."""

from dataclasses import dataclass

import jax

HEARTBEAT_S = 10  # a process not heard of for so long has died: all others are ended
GATHERING_S = 120  # for all processes to be there
LEAVING_S = 10  # for all to say that they leave


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process's part in a job."""

    coordinator: str  # HOST:PORT, served by process 0; also the job's name
    process: int
    num_processes: int


def join_job(job: Job) -> None:
    """Returns when every process of the job is there. Call it before anything else of jax.

    From then on `jax.devices()` are those of all processes, `jax.local_devices()` this one's.
    The job lives and dies as one: when a process ends without having left, jax ends all others
    with SIGABRT, `HEARTBEAT_S` later at most; one that is stopped, or hangs in a collective, does
    not react to SIGTERM any more and needs SIGKILL.

    Raises:
      RuntimeError: jax's own, where not all come in time.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # the CPU's only one
    jax.distributed.initialize(
        job.coordinator,
        job.num_processes,
        job.process,
        initialization_timeout=GATHERING_S,
        heartbeat_timeout_seconds=HEARTBEAT_S,
        shutdown_timeout_seconds=LEAVING_S,
    )
    jax.devices()  # starts the backend, which waits for the backends of all processes
