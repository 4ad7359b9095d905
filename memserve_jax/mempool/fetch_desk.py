"""The owner's side of fetches: what peers ask for is found, and sent to them."""

from memserve_jax.core.errors import MemServeError, StaleAddressError, TransferFailedError
from memserve_jax.mempool.control import FetchAnswer, FetchCall, RespondFetch
from memserve_jax.mempool.membership import Membership
from memserve_jax.mempool.memory import LocalMemory
from memserve_jax.mempool.sender import Sender
from memserve_jax.mempool.transfer import Offer, Transfer

NOTHING = FetchAnswer(0, 0)


class FetchDesk:
    """Sends peers what they fetch. The pool's owner makes every call."""

    def __init__(self, memory: LocalMemory, members: Membership, sender: Sender):
        self._memory = memory
        self._members = members
        self._sender = sender

    def serve(self, call: FetchCall, respond: RespondFetch) -> Transfer | None:
        """See `MemPool.serve_fetch`."""
        refusal = self._refusal(call)
        if refusal is not None:
            respond(refusal)
            return None
        size = self._memory.layout.block_size_tokens
        whole = self._memory.layout.whole_blocks(len(call.token_ids))
        with self._memory.match(call.token_ids, call.salt, max_blocks=whole) as lease:
            if len(lease) <= call.first_block:
                respond(NOTHING)
                return None
            offer = Offer(
                token_ids=call.token_ids[: len(lease) * size],
                insert=True,
                salt=call.salt,
                first_block=call.first_block,
                may_wait=False,  # a requester short of memory computes instead
                to_epoch=call.requester_epoch,
                timeout_s=call.timeout_s,
            )
            transfer = self._sender.start(offer, lease, call.requester)
        transfer.on_done(lambda ended: respond(_outcome(ended)))
        return transfer

    def _refusal(self, call: FetchCall) -> MemServeError | None:
        memory = self._memory
        if call.owner_epoch not in (None, memory.epoch):
            return StaleAddressError(
                f"{memory.instance} is in epoch {memory.epoch}, not {call.owner_epoch}"
            )
        if call.requester == memory.instance:
            return TransferFailedError(f"{memory.instance} cannot fetch from itself")
        if self._members.has_gone(call.requester, call.requester_epoch):
            return StaleAddressError(f"{call.requester} epoch {call.requester_epoch} is over")
        return None


def _outcome(transfer: Transfer) -> FetchAnswer | MemServeError:
    if transfer.error is not None:
        return transfer.error
    return FetchAnswer(transfer.num_blocks, transfer.num_bytes)
