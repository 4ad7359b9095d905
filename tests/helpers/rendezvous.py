"""Processes of a `collective` job, played by threads: who enters blocks until its peer does."""

import queue
import threading

import jax

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool import collective_accept, collective_push
from memserve_jax.mempool.collective import CollectiveTransport
from memserve_jax.parallel.job import Job
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding
from tests.helpers.announcers import DirectAnnouncer
from tests.helpers.ports import Landed

PATIENCE_S = 30.0
LAYOUT = KVLayout(num_layers=1, num_kv_heads=2, block_size_tokens=2, head_dim=2, dtype="float32")


class Rendezvous:
    """Stands in for the joined program: one queue for each pair of ends."""

    def __init__(self):
        self.lock = threading.Lock()
        self.queues: dict[tuple, tuple[queue.Queue, queue.Queue]] = {}

    def of(self, source, target):
        with self.lock:
            key = (tuple(source), tuple(target))
            return self.queues.setdefault(key, (queue.Queue(), queue.Queue()))

    def push(self, payload, source, target):
        there, back = self.of(source, target)
        there.put(payload)
        back.get(timeout=PATIENCE_S)

    def accept(self, shape, dtype, source, target, sharding):
        there, back = self.of(source, target)
        payload = there.get(timeout=PATIENCE_S)
        back.put(None)
        return jax.device_put(payload, sharding)


class Cluster:
    """Ends p0, p1, ... on a device each, every one in a process of its own as far as it knows."""

    def __init__(self, monkeypatch, num_ends, *, timeout_s=PATIENCE_S):
        self.rendezvous = Rendezvous()
        monkeypatch.setattr(collective_push, "push", self.rendezvous.push)
        monkeypatch.setattr(collective_accept, "accept", self.rendezvous.accept)
        self.announcer, self.failures = DirectAnnouncer(), []
        self.failed = threading.Event()
        self.landed, self.transports = [], []
        for index in range(num_ends):
            landed = Landed(
                f"p{index}", LAYOUT, packed_sharding(make_mesh([jax.devices()[index]], 1), 2)
            )
            transport = CollectiveTransport(
                Job(coordinator="here:1", process=index, num_processes=num_ends),
                self.announcer,
                SystemClock(),
                timeout_s=timeout_s,
                fail=self._fail,
            )
            transport.receive(landed.port)
            self.announcer.ends[f"p{index}"] = transport
            self.landed.append(landed)
            self.transports.append(transport)

    def devices(self, index):
        return [jax.devices()[index]]

    def _fail(self, reason):
        self.failures.append(reason)
        self.failed.set()

    def close(self):
        for transport in self.transports:
            transport.close()
