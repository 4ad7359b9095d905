"""Why a peer's wish for blocks can never be met, whatever memory becomes free."""

from memserve_jax.core.types import Tier
from memserve_jax.mempool.control import ReserveCall
from memserve_jax.mempool.membership import Membership
from memserve_jax.mempool.memory import LocalMemory
from memserve_jax.mempool.reservation import Reservation


def why_never(
    call: ReserveCall, memory: LocalMemory, members: Membership, earlier: Reservation | None
) -> str | None:
    """Returns why a call can never be served; None where it may be.

    Args:
      call: A peer's.
      memory: Of the pool asked.
      members: Which peers live.
      earlier: The reservation that `call.into` names, if it is there.
    """
    if call.receiver_epoch not in (None, memory.epoch):
        return f"{memory.instance} is in epoch {memory.epoch}, not {call.receiver_epoch}"
    if members.has_gone(call.sender, call.sender_epoch):
        return f"{call.sender} epoch {call.sender_epoch} is over"
    num_total = call.first_block + call.num_blocks
    if call.token_ids and num_total != memory.layout.blocks_for(len(call.token_ids)):
        return f"{num_total} blocks do not hold {len(call.token_ids)} tokens"
    if not call.token_ids and (call.first_block or call.insert or call.into):
        return "blocks without tokens cannot be matched, inserted or moved"
    reason = _why_no_room(call, memory)
    if reason is None and call.into is not None:
        reason = _why_not_into(call, earlier)
    return reason


def _why_no_room(call: ReserveCall, memory: LocalMemory) -> str | None:
    num_total = call.first_block + call.num_blocks
    num_hbm, num_host = memory.num_hbm_blocks, memory.num_host_blocks
    if call.tier is Tier.HBM:
        if num_total + call.extra_blocks > num_hbm:
            return f"wanted {num_total} blocks and {call.extra_blocks} beside, {num_hbm} in all"
    elif call.tier is not Tier.HOST or not num_host:
        return f"{memory.instance} takes nothing into {call.tier}"
    elif call.num_blocks > num_host or call.extra_blocks > num_hbm:
        return (
            f"wanted {call.num_blocks} blocks in {call.tier} and {call.extra_blocks} beside in "
            f"{Tier.HBM}, {num_host} and {num_hbm} in all"
        )
    return None


def _why_not_into(call: ReserveCall, earlier: Reservation | None) -> str | None:
    if earlier is None or earlier.lease is None or earlier.call.token_ids:
        return f"{call.into} holds no blocks here"
    if earlier.call.sender != call.sender or earlier.call.sender_epoch != call.sender_epoch:
        return f"{call.into} belongs to {earlier.call.sender}"
    if earlier.call.tier is not call.tier:
        return f"{call.into} holds blocks in {earlier.call.tier}, wanted {call.tier}"
    if len(earlier.blocks) < call.num_blocks:
        return f"{call.into} holds {len(earlier.blocks)} blocks, wanted {call.num_blocks}"
    return None
