"""Everything a pool has to do with its peers, put together."""

from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.announce import Announced, Announcement, RespondAnnounce
from memserve_jax.mempool.arrival import Arrival
from memserve_jax.mempool.calls import PeerCalls
from memserve_jax.mempool.control import PeerChannel
from memserve_jax.mempool.fetch import Fetcher
from memserve_jax.mempool.fetch_desk import FetchDesk
from memserve_jax.mempool.gate import Gate
from memserve_jax.mempool.inbox import Inbox
from memserve_jax.mempool.membership import Membership
from memserve_jax.mempool.memory import LocalMemory
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.port import Port
from memserve_jax.mempool.receiver import Receiver
from memserve_jax.mempool.remote_leases import RemoteLeases
from memserve_jax.mempool.routes import Routes
from memserve_jax.mempool.sender import Sender
from memserve_jax.mempool.transport import Payload, Transport
from memserve_jax.parallel.mesh import tensor_parallelism


class Exchange:
    """Both ends of transfers and the wires between. The owner makes every call.

    Attributes:
      port: Where bytes come in.
      fetcher: KV on its way from peers that was asked for here.
      desk: What peers ask for.
      receiver: Reservations that peers have here.
      remote: Leases on peers' blocks.
      sender: Transfers to peers.
      gate: Bounds how many of them are under way at once.
    """

    def __init__(
        self,
        memory: LocalMemory,
        mesh: Mesh,
        *,
        channel: PeerChannel | None,
        transports: Sequence[Transport],
        max_transfers: int,
        clock: Clock,
        inbox: Inbox,
    ):
        """Makes the ends of transfers; `transports` deliver to `port` from now on."""
        self._inbox = inbox
        self._announced = {t.name: t for t in transports if isinstance(t, Announced)}
        self._members = Membership()
        calls = PeerCalls(memory.instance, memory.epoch, channel, inbox)
        routes = Routes(transports)
        self.port = Port(
            instance=memory.instance,
            epoch=memory.epoch,
            layout=memory.layout,
            packed_sharding=memory.pages.packed_sharding,
            land=self._deliver,
        )
        self.receiver = Receiver(
            memory,
            self._members,
            port=self.port,
            routes=routes,
            clock=clock,
            tensor_parallelism=tensor_parallelism(mesh),
        )
        self.remote = RemoteLeases(memory, self._members, calls, clock)
        self.gate = Gate(max_transfers)
        self.sender = Sender(
            memory,
            self._members,
            calls,
            remote=self.remote,
            routes=routes,
            gate=self.gate,
            clock=clock,
        )
        self.fetcher = Fetcher(memory, self._members, calls, clock)
        self.desk = FetchDesk(memory, self._members, self.sender)
        for transport in transports:
            transport.receive(self.port)

    @property
    def next_deadline_s(self) -> float | None:
        """When `poll` must be called at the latest; None: no wait is on."""
        ends = (self.sender, self.remote, self.receiver, self.fetcher)
        return min((at_s for end in ends for at_s in end.deadlines_s), default=None)

    def poll(self) -> list[Arrival]:
        """Moves transfers on; returns what has become usable here."""
        self._inbox.drain()
        self.sender.expire()
        self.remote.expire()
        self.fetcher.expire()
        self.receiver.serve()
        self._inbox.drain()  # what the calls above set off
        return self.receiver.take_arrivals()

    def announced(self, announcement: Announcement, respond: RespondAnnounce) -> None:
        """See `MemPool.announced`. Any thread."""
        transport = self._announced.get(announcement.transport)
        if transport is None:
            allowed = ", ".join(self._announced) or "none"
            respond(InvalidRequestError("transport", announcement.transport, allowed))
        else:
            transport.announced(announcement, respond)

    def peers_changed(self, live: Mapping[InstanceId, int]) -> None:
        """See `MemPool.peers_changed`."""
        self._members.change(live)
        self.receiver.abort_departed()
        self.sender.fail_departed()
        self.remote.end_departed()
        self.fetcher.end_departed()

    def close(self) -> None:
        """Fails what is under way, both ways, and gives it back."""
        self.fetcher.close()
        self.sender.close()
        self.remote.close()
        self.receiver.close()

    def check(self) -> None:
        """Asserts the invariants of every end."""
        self.receiver.check()
        self.sender.check()
        self.remote.check()

    def _deliver(self, transfer_id: TransferId, part: Part, payload: Payload) -> None:
        self._inbox.post(lambda: self.receiver.land(transfer_id, part, payload))
