"""Transport between meshes of one process: `jax.device_put` does the copy and the resharding."""

import threading
import uuid
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import InstanceId, Tier, TransferId
from memserve_jax.mempool.host_buffers import padded_rows, place
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.port import Port
from memserve_jax.mempool.transport import Destination, Endpoint, Payload, TransportCounters
from memserve_jax.mempool.wire_shards import moved


class LocalFabric:
    """Where the pools of one process find each other. Any thread may make every call.

    Attributes:
      address: Tells this fabric from those of other processes.
    """

    def __init__(self) -> None:
        self.address = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._ports: dict[InstanceId, Port] = {}

    def register(self, port: Port) -> None:
        """Makes an instance reachable, in place of an earlier life of its."""
        with self._lock:
            self._ports[port.instance] = port

    def unregister(self, instance: InstanceId) -> None:
        """Makes an instance unreachable; one that is not there stays so."""
        with self._lock:
            self._ports.pop(instance, None)

    def withdraw(self, port: Port) -> None:
        """Makes an instance unreachable, unless a later life of its has taken the place."""
        with self._lock:
            if self._ports.get(port.instance) is port:
                del self._ports[port.instance]

    def find(self, instance: InstanceId) -> Port:
        """Returns where an instance takes bytes.

        Raises:
          TransferFailedError: it is not in this process.
        """
        with self._lock:
            port = self._ports.get(instance)
        if port is None:
            raise TransferFailedError(f"{instance} is not in this process")
        return port


class DevicePutTransport:
    """Copies on one worker thread, so that the owner neither copies nor waits.

    `device_put` is never given `donate=True`: between disjoint meshes that segfaults. The
    staging array is dropped instead, as soon as the copy is complete.
    """

    def __init__(self, fabric: LocalFabric, clock: Clock):
        self.name = "device_put"
        self.counters = TransportCounters()
        self._fabric = fabric
        self._clock = clock
        self._port: Port | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device_put")

    @property
    def endpoint(self) -> Endpoint | None:
        """See `Transport.endpoint`."""
        return None if self._port is None else Endpoint(self.name, self._fabric.address)

    def receive(self, port: Port) -> None:
        """See `Transport.receive`."""
        self._port = port
        self._fabric.register(port)

    def refuses(self, at: Endpoint, source: Tier, target: Tier) -> str | None:
        """See `Transport.refuses`: every pair of tiers, in one process."""
        return None if at.address == self._fabric.address else "it is in another process"

    def send(
        self, transfer_id: TransferId, part: Part, payload: Payload, to: Destination
    ) -> Future[None]:
        """See `Transport.send`."""
        return self._worker.submit(self._copy, transfer_id, part, [payload], to)

    def close(self) -> None:
        """See `Transport.close`."""
        if self._port is not None:
            self._fabric.withdraw(self._port)
        self._worker.shutdown(wait=True)

    def _copy(
        self, transfer_id: TransferId, part: Part, staged: list[Payload], to: Destination
    ) -> None:
        start_s = self._clock.now_s()
        port = self._fabric.find(to.instance)
        tier = port.admits(transfer_id, part, to.ticket)
        payload = staged.pop()  # the last reference: freed with this frame's next binding
        if tier is Tier.HOST:
            payload = np.asarray(payload)
        elif isinstance(payload, jax.Array):
            payload = moved(payload, port.packed_sharding)
        else:
            rows = padded_rows(np.asarray(payload), part, port.layout)
            payload = place(rows, port.packed_sharding)
        self.counters.num_calls += 1
        self.counters.num_bytes += part.num_bytes(port.layout)
        self.counters.seconds += self._clock.now_s() - start_s
        port.deliver(transfer_id, part, payload)
