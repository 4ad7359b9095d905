"""How an instance's pool reaches others: a control channel, and transports for the bytes.

Which transports there are follows from where the peers can be; which one carries a transfer is
decided by the pool, from the two ends.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

import jax

from memserve_jax.core.clock import Clock
from memserve_jax.core.config import MemPoolSection
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.types import Role
from memserve_jax.mempool.collective import CollectiveTransport
from memserve_jax.mempool.control import PeerChannel
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from memserve_jax.mempool.jax_transfer import JaxTransferTransport
from memserve_jax.mempool.tcp import TcpTransport
from memserve_jax.mempool.transport import Transport
from memserve_jax.parallel.job import Job, fail_job
from memserve_jax.proto.server import ANY_HOST, LOOPBACK
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.pool_channel import GrpcPeerChannel

_ELSEWHERE = ("192.0.2.1", 9)  # an address for documentation, on no network
BETWEEN_PROCESSES = {  # platform -> best first; None: any accelerator
    "cpu": ("tcp",),  # does all that jax_transfer does
    None: ("jax_transfer", "tcp"),
}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Where an instance is, and where its peers can be."""

    section: MemPoolSection
    clock: Clock
    host: str  # that it listens on
    fabric: LocalFabric | None = None  # of the instances in the same process; None: no others
    job: Job | None = None  # that this process has joined


def make_links(role: Role, peers: Peers, situation: Situation) -> Links:
    """Returns the links of one instance. Call it in the asyncio loop of `peers`.

    Args:
      role: A colocated instance exchanges nothing, unless it may fetch.
      peers: Where the other instances are.
      situation: Decides which transports there are.

    Raises:
      ConfigError: none of the transports asked for can be had.
    """
    if role is Role.COLOCATED and situation.section.fetch == "never":
        return NO_LINKS
    channel = GrpcPeerChannel(peers, asyncio.get_running_loop())
    makers = _makers(situation, channel)
    names = situation.section.transports
    if names is None:
        names = _default_names(situation)
    chosen = tuple(makers[name]() for name in names if name in makers)
    if not chosen:
        raise ConfigError(
            f"mempool.transports: got {', '.join(names) or 'none'}, allowed here: "
            f"{', '.join(makers)}"
        )
    return Links(channel=channel, transports=chosen)


def check_transports(section: MemPoolSection, job: Job | None) -> None:
    """Does nothing where the transports asked for can be had, as far as jobs go.

    Raises:
      ConfigError: `collective` without a job.
    """
    if job is None and "collective" in (section.transports or ()):
        raise ConfigError(
            "mempool.transports: got collective, allowed only between the processes of one job: "
            "`serve --processes`, or `instance --job`"
        )


def reachable_host(host: str) -> str:
    """Returns the address at which peers reach what listens on `host`.

    Where that is every address: the one by which this machine reaches others. Its name may
    stand for a loopback address, which is no good to them.
    """
    if host not in ANY_HOST:
        return host
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(_ELSEWHERE)  # sends nothing, only looks for the route
        except OSError:  # no network: nobody is elsewhere
            return LOOPBACK
        return probe.getsockname()[0]


def _makers(situation: Situation, channel: GrpcPeerChannel) -> dict[str, Callable[[], Transport]]:
    """Returns what makes each transport that can be had."""
    clock, fabric = situation.clock, situation.fabric
    place = {
        "host": reachable_host(situation.host),
        "timeout_s": situation.section.transfer_timeout_s,
    }
    makers: dict[str, Callable[[], Transport]] = {
        "tcp": lambda: TcpTransport(clock, **place),
        "jax_transfer": lambda: JaxTransferTransport(channel, clock, **place),
    }
    job = situation.job
    if job is not None:
        makers["collective"] = lambda: CollectiveTransport(
            job, channel, clock, timeout_s=situation.section.transfer_timeout_s, fail=fail_job
        )
    if fabric is not None:
        makers["device_put"] = lambda: DevicePutTransport(fabric, clock)
    return makers


def _default_names(situation: Situation) -> tuple[str, ...]:
    if situation.fabric is not None:
        return ("device_put",)
    by_platform = BETWEEN_PROCESSES.get(jax.default_backend(), BETWEEN_PROCESSES[None])
    return by_platform if situation.job is None else ("collective", *by_platform)
