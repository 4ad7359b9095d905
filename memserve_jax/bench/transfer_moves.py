"""Calls and time to move one prompt's KV between two pools of a process, in each transfer mode."""

import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import jax

from memserve_jax.core.clock import Clock, SystemClock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId, TransferId, TransferMode
from memserve_jax.mempool.control import FetchAnswer, FetchCall, ReserveAnswer, ReserveCall
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.pool import MemPool
from memserve_jax.mempool.stream import Ready
from memserve_jax.mempool.transfer import Transfer
from memserve_jax.parallel.mesh import make_mesh

SENDER, RECEIVER = InstanceId("p0"), InstanceId("d0")
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What one mode takes for one prompt (the paper's figure 11)."""

    mode: TransferMode
    num_blocks: int
    num_bytes: int
    num_calls: int
    seconds: tuple[float, ...]  # a round each

    @property
    def median_s(self) -> float:
        """Of the rounds."""
        return statistics.median(self.seconds)


class DirectChannel:
    """A `PeerChannel` between pools that one thread owns: direct calls."""

    def __init__(self, pools: Mapping[InstanceId, MemPool]):
        self._pools = pools

    def reserve(
        self, to: InstanceId, call: ReserveCall, *, timeout_s: float
    ) -> Future[ReserveAnswer]:
        """See `PeerChannel`."""
        return _answered(lambda respond: self._pools[to].reserve(call, respond))

    def commit(self, to: InstanceId, transfer_id: TransferId, *, timeout_s: float) -> Future[None]:
        """See `PeerChannel`."""
        return _answered(lambda respond: self._pools[to].commit(transfer_id, respond))

    def abort(self, to: InstanceId, transfer_id: TransferId, reason: str) -> Future[None]:
        """See `PeerChannel`."""
        self._pools[to].abort(transfer_id, reason)
        return _answered(lambda respond: respond(None))

    def fetch(self, owner: InstanceId, call: FetchCall, *, timeout_s: float) -> Future[FetchAnswer]:
        """See `PeerChannel`."""
        return _answered(lambda respond: self._pools[owner].serve_fetch(call, respond))


class MoveBench:
    """Two pools on two devices. Nothing computes: by layer, only the cutting is measured."""

    def __init__(self, layout: KVLayout, *, num_tokens: int, num_groups: int):
        """Makes pools that hold one prompt of `num_tokens`; by layer it goes in `num_groups`."""
        self._layout = layout
        self._groups = layout.layer_groups(num_groups)
        self._token_ids = list(range(num_tokens))
        self._num_blocks = layout.blocks_for(num_tokens)
        self._clock: Clock = SystemClock()
        fabric, self._pools = LocalFabric(), {}
        self._transports = [DevicePutTransport(fabric, self._clock) for _ in range(2)]
        channel = DirectChannel(self._pools)
        ends = zip((SENDER, RECEIVER), jax.devices(), self._transports, strict=False)
        for name, device, transport in ends:
            self._pools[name] = MemPool(
                instance=name,
                epoch=1,
                layout=layout,
                mesh=make_mesh([device], 1),
                hbm_blocks=self._num_blocks,
                channel=channel,
                transports=[transport],
                clock=self._clock,
            )

    def measure(self, mode: TransferMode, num_rounds: int) -> Move:
        """Moves the prompt once to compile, then `num_rounds` times, and returns what it took."""
        sender = self._pools[SENDER]
        with sender.alloc_mem(self._num_blocks) as lease:
            rounds = [self._move(mode, lease) for _ in range(1 + num_rounds)][1:]
        transfer = rounds[0][0]
        return Move(
            mode=mode,
            num_blocks=transfer.num_blocks,
            num_bytes=transfer.num_bytes,
            num_calls=transfer.num_calls,
            seconds=tuple(seconds for _, seconds in rounds),
        )

    def close(self) -> None:
        """Ends pools and transports."""
        for pool in self._pools.values():
            pool.close()
            pool.check()
        for transport in self._transports:
            transport.close()

    def _move(self, mode: TransferMode, lease: Lease) -> tuple[Transfer, float]:
        sender, receiver = self._pools[SENDER], self._pools[RECEIVER]
        start_s = self._clock.now_s()
        transfer = self._start(mode, lease)
        while not transfer.is_ended:
            sender.wait(1e-4)
            sender.poll()
            for arrival in receiver.poll():
                arrival.lease.close()
        jax.block_until_ready(receiver.pages)
        seconds = self._clock.now_s() - start_s
        if transfer.error is not None:
            raise transfer.error
        for arrival in receiver.poll():
            arrival.lease.close()
        return transfer, seconds

    def _start(self, mode: TransferMode, lease: Lease) -> Transfer:
        sender = self._pools[SENDER]
        if mode is not TransferMode.BY_LAYER:
            by_cell = mode is TransferMode.BY_REQUEST
            return sender.transfer(
                lease, RECEIVER, token_ids=self._token_ids, by_cell=by_cell, timeout_s=TIMEOUT_S
            )
        stream = sender.stream(self._token_ids, RECEIVER, insert=False, timeout_s=TIMEOUT_S)
        for first, count in self._groups:
            ready = Ready(
                first_layer=first,
                num_layers=count,
                num_blocks=self._num_blocks,
                num_old_blocks=0,
            )
            stream.feed(lease, ready)
        stream.finish()
        return stream.transfer


def _answered(call: Callable[[Callable[[Any], None]], object]) -> "Future[Any]":
    future: Future[Any] = Future()

    def respond(answer: object) -> None:
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    call(respond)
    return future
