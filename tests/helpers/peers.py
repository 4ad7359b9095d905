"""Pools that talk through a test's own hands: nothing moves until the test says so."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import jax
import numpy as np

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import Tier
from memserve_jax.mempool.host_buffers import padded_rows, place
from memserve_jax.mempool.transport import Endpoint, TransportCounters


def uncut(part, layout):
    """As it is."""
    return [part]


def by_row(part, layout):
    """Block by block."""
    return [
        dataclasses.replace(part, first_block=part.first_block + row, num_blocks=1)
        for row in range(part.num_blocks)
    ]


def by_cell(part, layout):
    """Side by side of each layer; the last first."""
    return [
        dataclasses.replace(part, first_layer=layer, num_layers=1, first_side=side, num_sides=1)
        for layer in reversed(range(layout.num_layers))
        for side in (1, 0)
    ]


@dataclass(frozen=True)
class Message:
    """One thing on its way. `kind`: what it is; `act` delivers it; `fail` tells its sender."""

    kind: str  # reserve, reserved, bytes, sent, commit, committed, abort
    sender: str
    to: str
    act: Callable[[], None]
    fail: Callable[[], None]


class Network:
    """Control messages and bytes between pools, kept until they are delivered, one by one.

    Any message may be delivered out of order, twice, or dropped: what a bad network does.
    """

    def __init__(self, clock: Clock):
        self.clock = clock
        self.pools, self.ports = {}, {}
        self.cut = uncut  # how what is sent from now on is cut into messages
        self.messages: list[Message] = []
        self.delivered: list[str] = []  # kinds

    def join(self, pool) -> None:
        self.pools[pool.instance] = pool

    def leave(self, instance) -> None:
        self.pools.pop(instance, None)

    def deliver(self, index: int = 0) -> str:
        """Delivers a message; returns its kind."""
        message = self.messages.pop(index)
        self.delivered.append(message.kind)
        message.act()
        return message.kind

    def drop(self, index: int = 0) -> None:
        del self.messages[index]

    def fail(self, index: int = 0) -> None:
        """Loses a message and lets its sender know."""
        self.messages.pop(index).fail()

    def duplicate(self, index: int = 0) -> None:
        self.messages.append(self.messages[index])

    def poll(self) -> list:
        return [arrival for pool in list(self.pools.values()) for arrival in pool.poll()]

    def run(self, until: str | None = None) -> list:
        """Delivers in order and polls until all is quiet, or before the first `until`."""
        arrivals = self.poll()
        while self.messages and self.messages[0].kind != until:
            self.deliver()
            arrivals += self.poll()
        return arrivals

    def post(self, kind, sender, to, act, fail=lambda: None) -> None:
        self.messages.append(Message(kind, sender, to, act, fail))

    def call(self, kind: str, sender: str, to: str, at_peer: Callable) -> Future:
        """A call to `to` whose answer is a message too; `at_peer(pool, respond)` serves it."""
        future: Future = Future()

        def answer(result) -> None:
            def resolve() -> None:
                if not future.done():
                    failed = isinstance(result, Exception)
                    (future.set_exception if failed else future.set_result)(result)

            answers = {
                "reserve": "reserved",
                "bytes": "sent",
                "commit": "committed",
                "fetch": "fetched",
            }
            if kind in answers:
                self.post(answers[kind], to, sender, resolve, lose)

        def lose() -> None:
            if not future.done():
                future.set_exception(TransferFailedError(f"{kind} from {sender} to {to} was lost"))

        def arrive() -> None:
            pool = self.pools.get(to)
            if pool is None:
                lose()
            else:
                at_peer(pool, answer)

        self.post(kind, sender, to, arrive, lose)
        return future


class NetworkChannel:
    """One pool's `PeerChannel`."""

    def __init__(self, network: Network, instance: str):
        self.network = network
        self.instance = instance

    def reserve(self, to, call, *, timeout_s):
        return self.network.call(
            "reserve", self.instance, to, lambda pool, answer: pool.reserve(call, answer)
        )

    def commit(self, to, transfer_id, *, timeout_s):
        return self.network.call(
            "commit", self.instance, to, lambda pool, answer: pool.commit(transfer_id, answer)
        )

    def abort(self, to, transfer_id, reason):
        return self.network.call(
            "abort", self.instance, to, lambda pool, _: pool.abort(transfer_id, reason)
        )

    def fetch(self, owner, call, *, timeout_s):
        return self.network.call(
            "fetch", self.instance, owner, lambda pool, answer: pool.serve_fetch(call, answer)
        )


class NetworkTransport:
    """One pool's `Transport`: a `device_put` when the bytes are delivered."""

    name = "network"

    def __init__(self, network: Network, instance: str):
        self.network = network
        self.instance = instance
        self.counters = TransportCounters()
        self.endpoint = Endpoint(self.name, instance)
        self.port = None

    def receive(self, port) -> None:
        self.port = port
        self.network.ports[port.instance] = port

    def refuses(self, at, source, target) -> str | None:
        return None

    def send(self, transfer_id, part, payload, to):
        """As one message, or as one a piece."""
        pieces = self.network.cut(part, self.port.layout)
        if len(pieces) == 1:
            return self._send_piece(transfer_id, part, payload, to)
        kv = np.asarray(payload)
        sent = [
            self._send_piece(transfer_id, piece, kv[_box_within(part, piece)], to)
            for piece in pieces
        ]
        return _all_of(sent)

    def _send_piece(self, transfer_id, part, payload, to):
        def at_peer(pool, answer) -> None:
            port = self.network.ports[pool.instance]
            try:
                tier = port.admits(transfer_id, part, to.ticket)
            except TransferFailedError as error:
                answer(error)
                return
            arrived = payload if isinstance(payload, jax.Array) else np.asarray(payload)
            if tier is Tier.HOST:
                arrived = np.asarray(arrived)
            elif isinstance(arrived, jax.Array):
                arrived = jax.device_put(arrived, port.packed_sharding)
            else:
                arrived = place(padded_rows(arrived, part, port.layout), port.packed_sharding)
            port.deliver(transfer_id, part, arrived)
            answer(None)

        self.counters.num_calls += 1
        return self.network.call("bytes", self.instance, to.instance, at_peer)

    def close(self) -> None:
        pass


def _box_within(whole, part):
    """Where the cells of `part` are in the payload of `whole`."""
    row = part.first_block - whole.first_block
    layer = part.first_layer - whole.first_layer
    side = part.first_side - whole.first_side
    return (
        slice(row, row + part.num_blocks),
        slice(layer, layer + part.num_layers),
        slice(side, side + part.num_sides),
    )


def _all_of(futures):
    """A future that ends when the last of them does, or the first fails."""
    whole: Future = Future()
    left = set(futures)

    def done(each) -> None:
        left.discard(each)
        if whole.done():
            return
        if each.exception() is not None:
            whole.set_exception(each.exception())
        elif not left:
            whole.set_result(None)

    for each in futures:
        each.add_done_callback(done)
    return whole
