"""A port without a pool: it keeps what lands."""

import threading

from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.mempool.port import Port

TICKET = b"ticket"
PATIENCE_S = 60.0


class Landed:
    """A port and the parts that were delivered to it, in order."""

    def __init__(self, instance, layout, sharding, epoch=1):
        self.parts = []
        self.port = Port(
            instance=InstanceId(instance),
            epoch=epoch,
            layout=layout,
            packed_sharding=sharding,
            land=self._land,
        )
        self._has_come = threading.Condition()

    def wait_for(self, num_parts):
        """Returns the parts, once so many have come; some transports say "sent" before."""
        with self._has_come:
            assert self._has_come.wait_for(lambda: len(self.parts) >= num_parts, PATIENCE_S)
            return self.parts

    def _land(self, *landed):
        with self._has_come:
            self.parts.append(landed)
            self._has_come.notify_all()

    def expect(self, transfer_id, num_blocks, *, tier=Tier.HBM, ticket=TICKET):
        """Opens a reservation of `num_blocks` blocks."""
        self.port.open(transfer_id, num_blocks=num_blocks, tier=tier, ticket=ticket)
