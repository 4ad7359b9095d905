"""Where a pool takes bytes: what the receiving ends of its transports see of it."""

import hmac
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Shaped

from memserve_jax.core.errors import TransferFailedError, WrongTicketError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId, Tier, TransferId
from memserve_jax.mempool.part import NUM_SIDES, Part

Land = Callable[[TransferId, Part, "Array | np.ndarray"], None]

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class _Inbound:
    """A reservation whose bytes may come."""

    num_blocks: int
    tier: Tier
    ticket: bytes
    is_taken: np.ndarray  # [num_blocks, L, 2], of cells admitted
    under_way: set[Part] = field(default_factory=set)  # admitted, not delivered


class Port:
    """The open reservations of a pool, guarded. Any thread may make every call.

    A part is admitted once, before memory is taken for it, and delivered once.

    Attributes:
      instance: Whose pool it is.
      epoch: Which life of the instance.
      layout: Sizes of the KV.
      packed_sharding: How a part for HBM must lie on the pool's mesh when it is delivered.
    """

    def __init__(
        self,
        *,
        instance: InstanceId,
        epoch: int,
        layout: KVLayout,
        packed_sharding: NamedSharding,
        land: Land,
    ):
        """Makes a port that admits nothing; `land` is called on the delivering thread."""
        self.instance = instance
        self.epoch = epoch
        self.layout = layout
        self.packed_sharding = packed_sharding
        self._land = land
        self._lock = threading.Lock()
        self._inbound: dict[TransferId, _Inbound] = {}

    def admits(self, transfer_id: TransferId, part: Part, ticket: bytes) -> Tier:
        """Admits a part, whose bytes are about to come.

        Returns:
          The tier it is for.

        Raises:
          WrongTicketError: not on that ticket.
          TransferFailedError: nothing of that name is expected; it does not lie in the blocks
            reserved, or some of it was admitted before.
        """
        with self._lock:
            inbound = self._inbound.get(transfer_id)
            if inbound is None:
                raise TransferFailedError(f"{transfer_id}: {self.instance} expects no bytes of it")
            if not hmac.compare_digest(inbound.ticket, ticket):
                raise WrongTicketError(f"{transfer_id}: not on this ticket")
            reason = part.why_not_of(self.layout, inbound.num_blocks)
            if reason is not None:
                raise TransferFailedError(f"{transfer_id}: {reason}")
            cells = inbound.is_taken[_box(part)]
            if cells.any():
                raise TransferFailedError(f"{transfer_id}: {part} was admitted before")
            cells[...] = True
            inbound.under_way.add(part)
            return inbound.tier

    def deliver(
        self,
        transfer_id: TransferId,
        part: Part,
        payload: Shaped[Array, "n L C K S H"] | Shaped[np.ndarray, "n L C K S H"],
    ) -> None:
        """Hands in the bytes of an admitted part, all of them; of any other they are dropped.

        Args:
          transfer_id: Whose part.
          part: Which one.
          payload: Rows past `part.num_blocks` are padding. For HBM an array on
            `packed_sharding`; for HOST any array.
        """
        with self._lock:
            inbound = self._inbound.get(transfer_id)
            if inbound is None or part not in inbound.under_way:
                _log.info("%s: %s of %s came too late", self.instance, part, transfer_id)
                return
            inbound.under_way.remove(part)
        self._land(transfer_id, part, payload)

    def open(self, transfer_id: TransferId, *, num_blocks: int, tier: Tier, ticket: bytes) -> None:
        """Admits the parts of a transfer of `num_blocks` blocks from now on; for the receiver."""
        shape = (num_blocks, self.layout.num_layers, NUM_SIDES)
        inbound = _Inbound(
            num_blocks=num_blocks, tier=tier, ticket=ticket, is_taken=np.zeros(shape, np.bool_)
        )
        with self._lock:
            self._inbound[transfer_id] = inbound

    def shut(self, transfer_id: TransferId) -> None:
        """Admits and delivers nothing of a transfer any more; for the receiver."""
        with self._lock:
            self._inbound.pop(transfer_id, None)

    @property
    def num_open(self) -> int:
        """Transfers whose bytes may come."""
        with self._lock:
            return len(self._inbound)


def _box(part: Part) -> tuple[slice, slice, slice]:
    return (
        slice(part.first_block, part.first_block + part.num_blocks),
        slice(part.first_layer, part.first_layer + part.num_layers),
        slice(part.first_side, part.first_side + part.num_sides),
    )
