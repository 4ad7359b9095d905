"""KV that came from a peer."""

from dataclasses import dataclass

from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.lease import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A transfer's end at the receiver. Who takes it from `poll` owns the lease."""

    transfer_id: TransferId
    sender: InstanceId
    private: bytes  # as the sender gave it
    lease: Lease  # all blocks of token_ids in order: a block table
    token_ids: tuple[int, ...]
    num_tokens: int  # whose KV is here: len(token_ids)
    num_blocks_moved: int  # of the lease's; the others were here before
    num_bytes_moved: int
