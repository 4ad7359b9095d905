"""How an instance's pool reaches others: a control channel, and transports for the bytes.

Which transports there are follows from where the peers can be; which one carries a transfer is
decided by the pool, from the two ends.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

import jax

from memserve_jax.core.clock import Clock
from memserve_jax.core.config import MemPoolSection
from memserve_jax.core.credentials import Credentials, is_loopback
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.types import Role
from memserve_jax.mempool.collective import CollectiveTransport
from memserve_jax.mempool.control import PeerChannel
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from memserve_jax.mempool.jax_transfer import JaxTransferTransport
from memserve_jax.mempool.tcp import TcpTransport
from memserve_jax.mempool.tcp_tls import TlsTerms
from memserve_jax.mempool.transport import Transport
from memserve_jax.parallel.job import Job, fail_job
from memserve_jax.proto.server import ANY_HOST, LOOPBACK
from memserve_jax.serving.peers import Peers
from memserve_jax.serving.pool_channel import GrpcPeerChannel

_ELSEWHERE = ("192.0.2.1", 9)  # an address for documentation, on no network
IN_PLAIN_TEXT = ("jax_transfer", "collective")  # between processes; neither can be encrypted
BETWEEN_PROCESSES = {  # platform -> best first; None: any accelerator
    "cpu": ("tcp",),  # does all that jax_transfer does
    None: ("jax_transfer", "tcp"),
}

_log = logging.getLogger(__name__)


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
    makers = _makers(situation, channel, peers.credentials)
    names = transport_names(situation, peers.credentials)
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


def transport_names(situation: Situation, credentials: Credentials) -> tuple[str, ...]:
    """Returns the transports wanted, best first: those configured, else those of the platform.

    Where there is TLS, none that cannot be encrypted leaves the machine, unless that is allowed.

    Raises:
      ConfigError: one is configured that cannot be encrypted.
    """
    configured = situation.section.transports
    names = _default_names(situation) if configured is None else configured
    is_outside = not is_loopback(reachable_host(situation.host))
    if credentials.tls is None or credentials.is_insecure or not is_outside:
        return names
    bare = [name for name in names if name in IN_PLAIN_TEXT]
    if bare and configured is not None:
        raise ConfigError(
            f"mempool.transports: got {bare[0]}, which cannot be encrypted, allowed with TLS "
            "beyond loopback: tcp, or --insecure"
        )
    if bare:
        _log.warning(
            "%s: not used: KV would leave this machine in plain text; --insecure allows it",
            ", ".join(bare),
        )
    return tuple(name for name in names if name not in IN_PLAIN_TEXT)


def _makers(
    situation: Situation, channel: GrpcPeerChannel, credentials: Credentials
) -> dict[str, Callable[[], Transport]]:
    """Returns what makes each transport that can be had."""
    clock, fabric = situation.clock, situation.fabric
    place = {
        "host": reachable_host(situation.host),
        "timeout_s": situation.section.transfer_timeout_s,
    }
    tls = credentials.tls
    terms = None if tls is None else TlsTerms(files=tls, name=credentials.server_name)
    makers: dict[str, Callable[[], Transport]] = {
        "tcp": lambda: TcpTransport(clock, **place, tls=terms),
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
