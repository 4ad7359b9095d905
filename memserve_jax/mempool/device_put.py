"""Transport between meshes of one process: `jax.device_put` does the copy and the resharding."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jax
from jax.sharding import NamedSharding
from jaxtyping import Array, Shaped

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.transport import TransportCounters

Deliver = Callable[[TransferId, Array], None]


@dataclass(frozen=True, slots=True)
class _Port:
    sharding: NamedSharding
    deliver: Deliver


class LocalFabric:
    """Where the pools of one process find each other. Any thread may make every call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ports: dict[InstanceId, _Port] = {}

    def register(self, instance: InstanceId, sharding: NamedSharding, deliver: Deliver) -> None:
        """Makes an instance reachable, in place of an earlier life of its.

        Args:
          instance: Its name.
          sharding: Its pool's `packed_sharding`.
          deliver: Its pool's `deliver`.
        """
        with self._lock:
            self._ports[instance] = _Port(sharding, deliver)

    def unregister(self, instance: InstanceId) -> None:
        """Makes an instance unreachable; one that is not there stays so."""
        with self._lock:
            self._ports.pop(instance, None)

    def find(self, instance: InstanceId) -> _Port:
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
        self.counters = TransportCounters()
        self._fabric = fabric
        self._clock = clock
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device_put")

    def send(
        self,
        transfer_id: TransferId,
        packed: Shaped[Array, "n L 2 K S H"],
        to: InstanceId,
        num_blocks: int,
    ) -> Future[None]:
        """See `Transport.send`."""
        return self._worker.submit(self._copy, transfer_id, [packed], to, num_blocks)

    def close(self) -> None:
        """See `Transport.close`."""
        self._worker.shutdown(wait=True)

    def _copy(
        self, transfer_id: TransferId, staged: list[Array], to: InstanceId, num_blocks: int
    ) -> None:
        start_s = self._clock.now_s()
        port = self._fabric.find(to)
        packed = staged.pop()  # the last reference: freed with this frame's next binding
        block_bytes = packed.nbytes // packed.shape[0]
        packed = jax.block_until_ready(jax.device_put(packed, port.sharding))
        self.counters.num_calls += 1
        self.counters.num_bytes += block_bytes * num_blocks
        self.counters.seconds += self._clock.now_s() - start_s
        port.deliver(transfer_id, packed)
