"""How packed blocks get from one instance's memory to another's."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Shaped

from memserve_jax.core.types import InstanceId, Tier, TransferId
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.port import Port
from memserve_jax.mempool.stored_rows import StoredRows

# Of HOST blocks: `StoredRows`, which `np.asarray` reads on the transport's own thread.
Payload = Shaped[Array, "n L C K S H"] | Shaped[np.ndarray, "n L C K S H"] | StoredRows


@dataclass(slots=True, kw_only=True)
class TransportCounters:
    """What a transport has done since it was made."""

    num_calls: int = 0
    num_bytes: int = 0  # padding not counted
    seconds: float = 0.0  # summed over calls, from start to the last byte's arrival


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an instance takes bytes by one transport. Mirrors `Endpoint` of the wire."""

    transport: str  # the transport's name
    address: str  # what that transport needs: a process, HOST:PORT, a job


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where the parts of one transfer go."""

    instance: InstanceId
    endpoint: Endpoint  # one of the receiver's, of the transport that sends
    tier: Tier  # where the bytes will lie
    ticket: bytes  # as the receiver gave it out: shown with every part


@runtime_checkable
class Transport(Protocol):
    """Moves bytes; knows nothing of blocks' meaning, leases or indexes.

    Attributes:
      name: As in `Endpoint` and in the config.
      counters: Of what was sent.
    """

    name: str
    counters: TransportCounters

    @property
    def endpoint(self) -> Endpoint | None:
        """Where peers reach this end; None: they cannot."""
        ...

    def receive(self, port: Port) -> None:
        """Takes bytes for a pool from now on. The pool calls it, once."""
        ...

    def refuses(self, at: Endpoint, source: Tier, target: Tier) -> str | None:
        """Why bytes in `source` here cannot get to `target` over there; None where they can."""
        ...

    def send(
        self, transfer_id: TransferId, part: Part, payload: Payload, to: Destination
    ) -> Future[None]:
        """Copies a part to `to` and hands it to the pool there.

        Never blocks the caller; a payload that is still being computed is waited for on a
        thread of the transport's. When the future resolves the bytes lie where they stay over
        there; the receiver's `Port.deliver` is called without more from here, if not yet.

        Args:
          transfer_id: Names the reservation there.
          part: Which cells the payload holds.
          payload: Packed; rows past `part.num_blocks` are padding and may be sent or not. The
            transport drops it when done.
          to: Where to; `refuses` has said that it can be done.

        Returns:
          A future that fails with `TransferFailedError` where the bytes cannot arrive.
        """
        ...

    def close(self) -> None:
        """Takes and sends no more; ends the transport's threads after copies under way."""
        ...
