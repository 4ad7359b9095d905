"""A process with pools and no engine: what `bench transfer` and tests of transports drive.

Run as `python -m memserve_jax.bench.pool_process FD`, a socket: it does what it is
told there; a call's kind names a method of `PoolProcess`.
"""

import hashlib
import logging
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memserve_jax.bench.call_link import CallLink, Respond
from memserve_jax.bench.pool_host import PoolHost
from memserve_jax.core.clock import SystemClock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId
from memserve_jax.mempool.arrival import Arrival
from memserve_jax.mempool.collective import CollectiveTransport
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from memserve_jax.mempool.jax_transfer import JaxTransferTransport
from memserve_jax.mempool.pool import MemPool
from memserve_jax.mempool.tcp import TcpTransport
from memserve_jax.mempool.transfer import Transfer
from memserve_jax.mempool.transport import Transport
from memserve_jax.parallel.job import Job, join_job
from memserve_jax.parallel.mesh import make_mesh

FAMILY = "AF_UNIX"
JOB_FAILED = 70  # exit status of a process that ended its job
MAX_COMMANDS = 16  # at once
HOST = "127.0.0.1"


class PoolProcess:
    """The commands. Arguments and answers are pickled; errors come back as they are."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.fabric = LocalFabric()
        self.host = PoolHost(self._arrived)
        self.transports: dict[InstanceId, list[Transport]] = {}
        self.arrivals: dict[InstanceId, list[Arrival]] = {}
        self._job: Job | None = None
        self._listener: Listener | None = None

    # setting up ---------------------------------------------------------------------------

    def use_devices(self, num_devices: int, job: Job | None) -> None:
        """Starts jax with emulated devices, in a job if there is one."""
        jax.config.update("jax_num_cpu_devices", num_devices)
        if job is not None:
            join_job(job)
        self._job = job

    def make_pool(
        self,
        instance: InstanceId,
        layout: KVLayout,
        devices: tuple[int, ...],
        transports: tuple[str, ...],
        options: dict[str, Any],
    ) -> None:
        """Makes a pool on some of the local devices; `options` are of `MemPool` and `timeout_s`."""
        timeout_s = options.pop("timeout_s", 30.0)
        ends = [self._make_transport(name, timeout_s) for name in transports]
        local = jax.local_devices()
        pool = MemPool(
            instance=instance,
            layout=layout,
            mesh=make_mesh([local[index] for index in devices], len(devices)),
            channel=self.host,
            transports=ends,
            clock=self.clock,
            **{"epoch": 1, "hbm_blocks": 1, **options},
        )
        self.transports[instance] = ends
        self.arrivals[instance] = []
        self.host.add(pool)

    def drop_pool(self, instance: InstanceId) -> None:
        """Closes a pool and its transports."""
        pool = self.host.pools.pop(instance)
        self.host.do(pool.close)
        for transport in self.transports.pop(instance):
            transport.close()

    def listen(self, address: str) -> None:
        """Waits at `address` for the one peer that `accept` takes."""
        self._listener = Listener(address, FAMILY)

    def accept(self, instances: tuple[InstanceId, ...]) -> None:
        """Waits for a peer; those pools are there."""
        assert self._listener is not None
        connection = self._listener.accept()
        self._listener.close()
        self._add_link(CallLink(connection, self.host.serve), instances)

    def connect(self, address: str, instances: tuple[InstanceId, ...]) -> None:
        """Connects to a peer that listens; those pools are there."""
        self._add_link(CallLink(Client(address, FAMILY), self.host.serve), instances)

    # using --------------------------------------------------------------------------------

    def cache(self, instance: InstanceId, token_ids: tuple[int, ...]) -> None:
        """Puts made-up KV of a prompt into the index; it depends on the prompt alone."""
        pool = self.host.pools[instance]
        num_blocks = pool.layout.whole_blocks(len(token_ids))
        kv = np.zeros(pool.layout.packed_shape(1 << (num_blocks - 1).bit_length()), np.float32)
        seed = int.from_bytes(hashlib.sha256(repr(token_ids).encode()).digest()[:8], "little")
        wanted = pool.layout.packed_shape(num_blocks)
        kv[:num_blocks] = np.random.default_rng(seed).integers(-99, 99, wanted)
        payload = jax.device_put(kv.astype(jnp.dtype(pool.layout.dtype)), pool.packed_sharding)

        def put() -> None:
            with pool.alloc_mem(num_blocks) as lease:
                pool._memory.pages.scatter(payload, lease.block_ids)
                pool.insert(token_ids, lease)

        self.host.do(put)

    def transfer(
        self, instance: InstanceId, to: InstanceId, token_ids: tuple[int, ...], timeout_s: float
    ) -> dict[str, Any]:
        """Sends a prompt's held KV to be indexed; returns how it went when it has ended."""
        pool = self.host.pools[instance]

        def start() -> Transfer:
            with pool.match_whole(token_ids) as lease:
                return pool.transfer_with_insert(token_ids, lease, to, timeout_s=timeout_s)

        transfer = self.host.do(start)
        done: Future[None] = Future()
        self.host.do(lambda: transfer.on_done(lambda _: done.set_result(None)))
        done.result()
        return {
            "phase": str(transfer.phase),
            "error": str(transfer.error or ""),
            "num_blocks": transfer.num_blocks,
            "num_calls": transfer.num_calls,
        }

    def digest(self, instance: InstanceId, token_ids: tuple[int, ...]) -> tuple[int, str]:
        """Returns the blocks held of a prompt, and a checksum of their KV."""
        pool = self.host.pools[instance]

        def read() -> tuple[int, str]:
            with pool.match_whole(token_ids) as lease:
                if not len(lease):
                    return 0, ""
                kv = np.asarray(pool._memory.pages.gather(lease.block_ids))[: len(lease)]
                return len(lease), hashlib.sha256(kv.tobytes()).hexdigest()

        return self.host.do(read)

    def check(self, instance: InstanceId) -> int:
        """Checks a pool's invariants; returns its blocks under a lease."""
        pool = self.host.pools[instance]

        def check() -> int:
            pool.check()
            return pool.num_leased

        return self.host.do(check)

    def counters(self, instance: InstanceId) -> dict[str, tuple[int, int]]:
        """Returns calls and bytes that each transport has sent."""
        ends = self.transports[instance]
        return {end.name: (end.counters.num_calls, end.counters.num_bytes) for end in ends}

    def _add_link(self, link: CallLink, instances: tuple[InstanceId, ...]) -> None:
        for instance in instances:
            self.host.links[instance] = link

    def _arrived(self, pool: MemPool, arrival: Arrival) -> None:
        arrival.lease.close()

    def _make_transport(self, name: str, timeout_s: float) -> Transport:
        if name == "device_put":
            return DevicePutTransport(self.fabric, self.clock)
        if name == "tcp":
            return TcpTransport(self.clock, host=HOST, timeout_s=timeout_s)
        if name == "jax_transfer":
            return JaxTransferTransport(self.host, self.clock, host=HOST, timeout_s=timeout_s)
        assert name == "collective" and self._job is not None, name
        return CollectiveTransport(
            self._job, self.host, self.clock, timeout_s=timeout_s, fail=_end_process
        )


def _end_process(reason: str) -> None:
    logging.getLogger(__name__).critical("%s: the job ends", reason)
    os._exit(JOB_FAILED)


def serve_commands(process: PoolProcess, descriptor: int) -> None:
    """Does what is told on a connected socket until that is closed; then ends the process."""
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(name)s: %(message)s")
    commands = ThreadPoolExecutor(MAX_COMMANDS)

    def serve(kind: str, arguments: tuple[Any, ...], respond: Respond) -> None:
        def run() -> None:
            try:
                respond(getattr(process, kind)(*arguments))
            except Exception as error:
                respond(error)

        commands.submit(run)

    link = CallLink(Connection(descriptor), serve)
    link.is_over.wait()
    os._exit(0)


if __name__ == "__main__":
    serve_commands(PoolProcess(), int(sys.argv[1]))
