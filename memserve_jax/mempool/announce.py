"""Telling a receiver that bytes can be had: for transports whose receiving end must act too.

A `jax_transfer` receiver pulls; both ends of a `collective` enter. `serving` carries an
announcement by gRPC; it comes to the transport of the same name at the receiver.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.part import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A sender's word on one part of a transfer. Mirrors `AnnounceRequest` of the wire."""

    transfer_id: TransferId
    transport: str  # its name, as in `Endpoint`
    part: Part
    address: str  # of the sender's end
    number: int  # of the sending, unique at the sender's end
    detail: bytes  # what else the transport's two ends have to say


RespondAnnounce = Callable[[MemServeError | None], None]  # None: done


@runtime_checkable
class Announcer(Protocol):
    """Carries announcements to the pools of other instances. Any thread may make the call."""

    def announce(
        self, to: InstanceId, announcement: Announcement, *, timeout_s: float
    ) -> Future[None]:
        """Tells `to`; resolves with the answer of its transport's receiving end, on any thread.

        A future fails with a `MemServeError` when the peer is unknown, gone, too slow, or says
        why not; every call ends by `timeout_s` at the latest.
        """
        ...


@runtime_checkable
class Announced(Protocol):
    """The receiving end of a transport that has to be told. Any thread may make the call."""

    def announced(self, announcement: Announcement, respond: RespondAnnounce) -> None:
        """Does the receiver's part of a sending. Never blocks, never raises.

        Args:
          announcement: From the peer's transport of the same name.
          respond: Called once, on any thread, when it has been done or has failed.
        """
        ...
