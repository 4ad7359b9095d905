"""A port without a pool: it keeps what lands."""

from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.mempool.port import Port

TICKET = b"ticket"


class Landed:
    """A port and the parts that were delivered to it, in order."""

    def __init__(self, instance, layout, sharding, epoch=1):
        self.parts = []
        self.port = Port(
            instance=InstanceId(instance),
            epoch=epoch,
            layout=layout,
            packed_sharding=sharding,
            land=lambda *landed: self.parts.append(landed),
        )

    def expect(self, transfer_id, num_blocks, *, tier=Tier.HBM, ticket=TICKET):
        """Opens a reservation of `num_blocks` blocks."""
        self.port.open(transfer_id, num_blocks=num_blocks, tier=tier, ticket=ticket)
