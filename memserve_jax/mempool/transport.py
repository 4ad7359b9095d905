"""How packed blocks get from one instance's devices to another's."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Shaped

from memserve_jax.core.types import InstanceId, TransferId


@dataclass(slots=True, kw_only=True)
class TransportCounters:
    """What a transport has done since it was made."""

    num_calls: int = 0
    num_bytes: int = 0  # padding not counted
    seconds: float = 0.0  # summed over calls, from start to the last byte's arrival


@runtime_checkable
class Transport(Protocol):
    """Moves bytes; knows nothing of blocks' meaning, leases or indexes."""

    counters: TransportCounters

    def send(
        self,
        transfer_id: TransferId,
        packed: Shaped[Array, "n L 2 K S H"],
        to: InstanceId,
        num_blocks: int,
    ) -> Future[None]:
        """Copies the first `num_blocks` packed blocks to `to` and hands them to its pool.

        Never blocks the caller. The receiver's `MemPool.deliver` has been called when the
        future resolves. Rows past `num_blocks` are padding and may be sent or not.

        Args:
          transfer_id: Names the reservation there.
          packed: Staging array on the sender's mesh; the transport drops it when done.
          to: The receiving instance.
          num_blocks: Blocks that count.

        Returns:
          A future that fails with `TransferFailedError` where the bytes cannot arrive.
        """
        ...

    def close(self) -> None:
        """Ends the transport's threads after the copies under way."""
        ...
