"""What the two ends of a `collective` share in one process: its place, its turn, its thread."""

import enum
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.mempool.deadlines import Deadlines
from memserve_jax.mempool.joined_mesh import wire_width
from memserve_jax.mempool.port import Port
from memserve_jax.mempool.turns import Turns
from memserve_jax.parallel.job import Job

NAME = "collective"
GRACE_S = 5.0  # beyond a sender's own deadline, for its last word to arrive


class Step(enum.StrEnum):
    """What a sender announces, in this order; `leave` in place of `enter`."""

    TURN = "turn"  # answered when it is the sender's turn at the receiver
    ENTER = "enter"  # answered when the bytes have been delivered
    LEAVE = "leave"  # it will not enter: the turn, or the wait for it, is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one end of a collective is: the address of its endpoint."""

    job: str
    process: int
    device_ids: tuple[int, ...]  # of the instance's mesh, in order; unique in the job

    @classmethod
    def of(cls, job: Job, devices: Sequence[jax.Device]) -> "Place":  # pyright: ignore[reportInvalidTypeForm]
        """Returns the place of an instance of this process on `devices`."""
        ids = tuple(device.id for device in devices)
        return cls(job=job.coordinator, process=job.process, device_ids=ids)

    @classmethod
    def from_address(cls, address: str) -> "Place":
        """Returns the place in `address`.

        Raises:
          TransferFailedError: there is none.
        """
        try:
            job, process, ids = json.loads(address)
            return cls(job=str(job), process=int(process), device_ids=tuple(map(int, ids)))
        except (ValueError, TypeError) as error:
            raise TransferFailedError(f"address: got {address[:200]!r}: {error}") from None

    @property
    def address(self) -> str:
        """For `Endpoint` and `Announcement`."""
        return json.dumps([self.job, self.process, self.device_ids])

    def devices(self, count: int) -> tuple[jax.Device, ...]:  # pyright: ignore[reportInvalidTypeForm]
        """Returns its first `count` devices.

        Raises:
          TransferFailedError: they are not devices of this job.
        """
        known = {device.id: device for device in jax.devices()}
        try:
            return tuple(known[number] for number in self.device_ids[:count])
        except KeyError as error:
            raise TransferFailedError(f"no device {error} in {self.job}") from None


class CollectiveEnd:
    """This process's end: both directions go by the one turn and the one thread."""

    def __init__(self, place: Place, port: Port, clock: Clock, fail: Callable[[str], None]):
        self.place = place
        self.port = port
        self.clock = clock
        self.fail = fail
        self.turns = Turns()
        self.deadlines = Deadlines(f"{NAME}-deadlines", clock)
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=NAME)

    def width(self, peer: Place) -> int:
        """Returns the pieces that payloads travel in between here and `peer`."""
        return wire_width(
            self.port.layout.num_kv_heads, len(self.place.device_ids), len(peer.device_ids)
        )

    def close(self) -> None:
        """Ends the threads, once the collective under way is over or `fail` has been called."""
        self.worker.shutdown(wait=True, cancel_futures=True)
        self.deadlines.close()
