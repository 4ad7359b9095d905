"""How an instance's pool reaches others: a control channel, and transports for the bytes.

Which transports there are follows from where the peers can be; which one carries a transfer is
decided by the pool, from the two ends.
"""

import asyncio
from dataclasses import dataclass

from memserve_jax.core.clock import Clock
from memserve_jax.core.types import Role
from memserve_jax.mempool.control import PeerChannel
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from memserve_jax.mempool.transport import Transport
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.pool_channel import GrpcPeerChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What a pool is given to reach others; nothing for one that sends nothing."""

    channel: PeerChannel | None = None
    transports: tuple[Transport, ...] = ()  # best first

    def close(self) -> None:
        """Ends the transports, after the copies under way. The pool is closed before."""
        for transport in self.transports:
            transport.close()


NO_LINKS = Links()


def make_links(role: Role, peers: Peers, clock: Clock, *, fabric: LocalFabric | None) -> Links:
    """Returns the links of one instance. Call it in the asyncio loop of `peers`.

    Args:
      role: A colocated instance exchanges nothing.
      peers: Where the other instances are.
      clock: Of the transports' counters.
      fabric: Of the instances in the same process; None: there are no others.
    """
    if role is Role.COLOCATED:
        return NO_LINKS
    channel = GrpcPeerChannel(peers, asyncio.get_running_loop())
    transports = () if fabric is None else (DevicePutTransport(fabric, clock),)
    return Links(channel=channel, transports=transports)
