"""The processes that `bench transfer` measures in: pools, payloads, and the bounds beside them.

Run as `python -m memserve_jax.bench.transfer_process FD`, as `pool_process`.
"""

import itertools
import sys
import time
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp

from memserve_jax.bench.pool_process import PoolProcess, serve_commands
from memserve_jax.bench.raw_bounds import CopyBound, SocketBound, SocketSink
from memserve_jax.bench.transfer_case import Case, Ends
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import InstanceId, Tier, TransferId
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.pool import MemPool
from memserve_jax.mempool.transfer import Transfer
from memserve_jax.mempool.transport import Destination, Endpoint

TIMEOUT_S = 60.0
TICKET = b"bench"


class TransferProcess(PoolProcess):
    """Adds measurements to the commands. Times are means over `repeats`, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._copy = CopyBound()
        self._sink: SocketSink | None = None
        self._socket: SocketBound | None = None
        self._payloads: dict[tuple[InstanceId, int], Any] = {}
        self._leases: dict[tuple[InstanceId, int, Tier, bool], Lease] = {}
        self._prompts = itertools.count(1)

    def listen_raw(self) -> int:
        """Takes bytes on a bare socket; returns its port."""
        self._sink = SocketSink()
        return self._sink.port

    def connect_raw(self, port: int) -> None:
        """Connects to such a socket."""
        self._socket = SocketBound(port)

    def copy_s(self, num_bytes: int, repeats: int) -> float:
        """Times `numpy.copyto`."""
        return self._copy.seconds(num_bytes, repeats)

    def socket_s(self, num_bytes: int, repeats: int) -> float:
        """Times the bare socket."""
        assert self._socket is not None
        return self._socket.seconds(num_bytes, repeats)

    def endpoint(self, instance: InstanceId) -> Endpoint:
        """Returns where a pool of one transport takes bytes."""
        (end,) = self.transports[instance]
        assert end.endpoint is not None
        return end.endpoint

    def expect(self, instance: InstanceId, names: list[TransferId], num_blocks: int) -> None:
        """Lets a pool's port take bytes that belong to no reservation: they are dropped there."""
        for name in names:
            self.host.pools[instance].port.open(
                name, num_blocks=num_blocks, tier=Tier.HBM, ticket=TICKET
            )

    def forget(self, instance: InstanceId, names: list[TransferId]) -> None:
        """Ends `expect`."""
        for name in names:
            self.host.pools[instance].port.shut(name)

    def put_s(self, ends: Ends, at: Endpoint, names: list[TransferId], num_blocks: int) -> float:
        """Times a transport alone, one call after the other: device memory to device memory."""
        pool, (transport,) = self.host.pools[ends.source], self.transports[ends.source]
        payload = self._payload(pool, num_blocks)
        part = Part.whole(pool.layout, num_blocks)
        destination = Destination(instance=ends.target, endpoint=at, tier=Tier.HBM, ticket=TICKET)
        began_s = time.perf_counter()
        for name in names:
            transport.send(name, part, payload, destination).result(TIMEOUT_S)
        return (time.perf_counter() - began_s) / len(names)

    def transfer_s(self, ends: Ends, case: Case, repeats: int) -> float:
        """Times whole transfers: from the lease at one end to finished pages at the other."""
        pool, to, num_blocks = self.host.pools[ends.source], ends.target, case.num_blocks
        lease = self._lease(pool, case)
        began_s = time.perf_counter()
        for _ in range(repeats):
            done: Future[Transfer] = Future()
            token = next(self._prompts)
            token_ids = [token] * (num_blocks * pool.layout.block_size_tokens)

            def start(token_ids: list[int] = token_ids, done: "Future[Transfer]" = done) -> None:
                transfer = pool.transfer(
                    lease, to, token_ids=token_ids, tier=case.target, timeout_s=TIMEOUT_S
                )
                transfer.on_done(done.set_result)

            self.host.do(start)
            transfer = done.result(TIMEOUT_S)
            if transfer.error is not None:
                raise transfer.error
            if transfer.num_blocks != num_blocks:
                raise TransferFailedError(f"moved {transfer.num_blocks} of {num_blocks} blocks")
            self.host.settled(to, timeout_s=TIMEOUT_S).result()
        return (time.perf_counter() - began_s) / repeats

    def drop_pool(self, instance: InstanceId) -> None:
        """Ends a pool, and the leases that were measured with."""
        for key in [key for key in self._leases if key[0] == instance]:
            self.host.do(self._leases.pop(key).close)
        for key in [key for key in self._payloads if key[0] == instance]:
            del self._payloads[key]
        super().drop_pool(instance)

    def _payload(self, pool: MemPool, num_blocks: int) -> Any:
        key = (pool.instance, num_blocks)
        if key not in self._payloads:
            shape, dtype = pool.layout.packed_shape(num_blocks), jnp.dtype(pool.layout.dtype)
            make = jax.jit(lambda: jnp.ones(shape, dtype), out_shardings=pool.packed_sharding)
            self._payloads[key] = jax.block_until_ready(make())
        return self._payloads[key]

    def _lease(self, pool: MemPool, case: Case) -> Lease:
        key = (pool.instance, case.num_blocks, case.source, case.is_scattered)
        if key not in self._leases:
            for old in [old for old in self._leases if old[0] == pool.instance]:
                self.host.do(self._leases.pop(old).close)
            self._leases[key] = self.host.do(lambda: _alloc(pool, case))
        return self._leases[key]


def _alloc(pool: MemPool, case: Case) -> Lease:
    """Leases blocks; scattered ones have as many free ones between them."""
    step = 2 if case.is_scattered else 1
    singles = [pool.alloc_mem(1) for _ in range(case.num_blocks * step)]
    lease = singles[0]
    for index, single in enumerate(singles[1:], start=1):
        if index % step:
            single.close()
        else:
            lease.absorb(single)
    if case.source is Tier.HBM:
        return lease
    return _swapped_out(pool, lease)


def _swapped_out(pool: MemPool, lease: Lease) -> Lease:
    """Returns a lease on the same contents in HOST."""
    token_ids = [0] * (len(lease) * pool.layout.block_size_tokens)
    pool.insert(token_ids, lease)
    num_blocks = len(lease)
    lease.close()
    pool.swap_out(num_blocks)
    held = pool.match_whole(token_ids)
    tiers = {address.tier for address in held.blocks}
    assert len(held) == num_blocks and tiers == {Tier.HOST}, f"{len(held)} blocks in {tiers}"
    return held


if __name__ == "__main__":
    serve_commands(TransferProcess(), int(sys.argv[1]))
