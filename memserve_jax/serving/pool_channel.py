"""The control channel of MemPool over gRPC: `PeerChannel`, and its messages both ways."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from memserve_jax.core.errors import InvalidRequestError, TransferFailedError
from memserve_jax.core.types import BlockId, InstanceId, Tier, TransferId
from memserve_jax.mempool.announce import Announcement
from memserve_jax.mempool.control import FetchAnswer, FetchCall, ReserveAnswer, ReserveCall
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.transport import Endpoint
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.convert import checked_seconds
from memserve_jax.serving.peers import Peers, peer_errors

ABORT_TIMEOUT_S = 5.0
_T = TypeVar("_T")


def reserve_to_message(call: ReserveCall) -> pb.ReserveRequest:
    """Returns `call` for the wire."""
    return pb.ReserveRequest(
        transfer_id=call.transfer_id,
        sender=call.sender,
        sender_epoch=call.sender_epoch,
        receiver_epoch=call.receiver_epoch or 0,
        cache_salt=call.salt,
        token_ids=call.token_ids,
        first_block=call.first_block,
        num_blocks=call.num_blocks,
        insert=call.insert,
        may_wait=call.may_wait,
        private=call.private,
        extra_blocks=call.extra_blocks,
        timeout_s=call.timeout_s,
        into=call.into or "",
        tier=call.tier,
    )


def reserve_from_message(message: pb.ReserveRequest) -> ReserveCall:
    """Returns the call in `message`.

    Raises:
      InvalidRequestError: it names a tier that does not exist.
    """
    return ReserveCall(
        transfer_id=TransferId(message.transfer_id),
        sender=InstanceId(message.sender),
        sender_epoch=message.sender_epoch,
        receiver_epoch=message.receiver_epoch or None,
        salt=message.cache_salt,
        token_ids=tuple(message.token_ids),
        first_block=message.first_block,
        num_blocks=message.num_blocks,
        insert=message.insert,
        may_wait=message.may_wait,
        private=message.private,
        extra_blocks=message.extra_blocks,
        timeout_s=checked_seconds("timeout_s", message.timeout_s),
        into=TransferId(message.into) if message.into else None,
        tier=_tier_of(message.tier),
    )


def _tier_of(name: str) -> Tier:
    if not name:
        return Tier.HBM
    try:
        return Tier(name)
    except ValueError as error:
        raise InvalidRequestError("tier", name, ", ".join(Tier)) from error


def answer_to_message(answer: ReserveAnswer) -> pb.ReserveReply:
    """Returns `answer` for the wire."""
    return pb.ReserveReply(
        accepted=answer.accepted,
        refused_because=answer.refused_because,
        num_held_blocks=answer.num_held_blocks,
        tensor_parallelism=answer.tensor_parallelism,
        receiver_epoch=answer.receiver_epoch,
        blocks=answer.blocks,
        endpoints=[
            pb.Endpoint(transport=end.transport, address=end.address) for end in answer.endpoints
        ],
        ticket=answer.ticket,
    )


def answer_from_message(message: pb.ReserveReply) -> ReserveAnswer:
    """Returns the answer in `message`."""
    return ReserveAnswer(
        accepted=message.accepted,
        refused_because=message.refused_because,
        num_held_blocks=message.num_held_blocks,
        tensor_parallelism=message.tensor_parallelism,
        receiver_epoch=message.receiver_epoch,
        blocks=tuple(BlockId(block) for block in message.blocks),
        endpoints=tuple(Endpoint(end.transport, end.address) for end in message.endpoints),
        ticket=message.ticket,
    )


def fetch_to_message(call: FetchCall, target: str) -> pb.FetchRequest:
    """Returns `call` for the wire; `target` is where the requester's pool can be reached."""
    return pb.FetchRequest(
        requester=call.requester,
        requester_target=target,
        requester_epoch=call.requester_epoch,
        owner_epoch=call.owner_epoch or 0,
        token_ids=call.token_ids,
        cache_salt=call.salt,
        first_block=call.first_block,
        timeout_s=call.timeout_s,
    )


def fetch_from_message(message: pb.FetchRequest) -> FetchCall:
    """Returns the call in `message`."""
    return FetchCall(
        requester=InstanceId(message.requester),
        requester_epoch=message.requester_epoch,
        owner_epoch=message.owner_epoch or None,
        token_ids=tuple(message.token_ids),
        salt=message.cache_salt,
        first_block=message.first_block,
        timeout_s=checked_seconds("timeout_s", message.timeout_s),
    )


def announcement_to_message(announcement: Announcement) -> pb.AnnounceRequest:
    """Returns `announcement` for the wire."""
    part = announcement.part
    return pb.AnnounceRequest(
        transfer_id=announcement.transfer_id,
        transport=announcement.transport,
        part=pb.Part(
            first_block=part.first_block,
            num_blocks=part.num_blocks,
            first_layer=part.first_layer,
            num_layers=part.num_layers,
            first_side=part.first_side,
            num_sides=part.num_sides,
        ),
        address=announcement.address,
        number=announcement.number,
        detail=announcement.detail,
    )


def announcement_from_message(message: pb.AnnounceRequest) -> Announcement:
    """Returns the announcement in `message`."""
    part = message.part
    return Announcement(
        transfer_id=TransferId(message.transfer_id),
        transport=message.transport,
        part=Part(
            part.first_block,
            part.num_blocks,
            part.first_layer,
            part.num_layers,
            part.first_side,
            part.num_sides,
        ),
        address=message.address,
        number=message.number,
        detail=message.detail,
    )


class GrpcPeerChannel:
    """`PeerChannel` and `Announcer`: each call is one gRPC call with a deadline.

    Called on the pool's and its transports' threads; futures are resolved in the asyncio loop's.
    """

    def __init__(self, peers: Peers, asyncio_loop: asyncio.AbstractEventLoop):
        self._peers = peers
        self._asyncio_loop = asyncio_loop

    def reserve(
        self, to: InstanceId, call: ReserveCall, *, timeout_s: float
    ) -> "Future[ReserveAnswer]":
        """Asks `to` for blocks. May take all of `timeout_s`, when memory is short."""
        return self._start(self._reserve(to, call, timeout_s))

    def commit(
        self, to: InstanceId, transfer_id: TransferId, *, timeout_s: float
    ) -> "Future[None]":
        """Tells `to` that all bytes are there; resolves once they are visible."""
        return self._start(self._commit(to, transfer_id, timeout_s))

    def abort(self, to: InstanceId, transfer_id: TransferId, reason: str) -> "Future[None]":
        """Gives the reservation back."""
        return self._start(self._abort(to, transfer_id, reason))

    def fetch(
        self, owner: InstanceId, call: FetchCall, *, timeout_s: float
    ) -> "Future[FetchAnswer]":
        """Asks `owner` to send historical KV here. Cancelling the future ends the call."""
        return self._start(self._fetch(owner, call, timeout_s))

    def announce(
        self, to: InstanceId, announcement: Announcement, *, timeout_s: float
    ) -> "Future[None]":
        """See `Announcer.announce`."""
        return self._start(self._announce(to, announcement, timeout_s))

    def _start(self, work: Coroutine[Any, Any, _T]) -> "Future[_T]":
        try:
            return asyncio.run_coroutine_threadsafe(work, self._asyncio_loop)
        except RuntimeError:  # the asyncio loop is closed: this instance is going down
            work.close()
            failed: Future[_T] = Future()
            failed.set_exception(TransferFailedError("this instance is shutting down"))
            return failed

    async def _reserve(self, to: InstanceId, call: ReserveCall, timeout_s: float) -> ReserveAnswer:
        message = reserve_to_message(call)
        with peer_errors(to):
            reply = await self._peers.stub(to).Reserve(message, timeout=timeout_s)
        return answer_from_message(reply)

    async def _commit(self, to: InstanceId, transfer_id: TransferId, timeout_s: float) -> None:
        message = pb.CommitRequest(transfer_id=transfer_id)
        with peer_errors(to):
            await self._peers.stub(to).Commit(message, timeout=timeout_s)

    async def _fetch(self, owner: InstanceId, call: FetchCall, timeout_s: float) -> FetchAnswer:
        message = fetch_to_message(call, self._peers.own_target)
        with peer_errors(owner):
            reply = await self._peers.stub(owner).Fetch(message, timeout=timeout_s)
        return FetchAnswer(reply.num_blocks, reply.num_bytes)

    async def _abort(self, to: InstanceId, transfer_id: TransferId, reason: str) -> None:
        message = pb.AbortRequest(transfer_id=transfer_id, reason=reason)
        with peer_errors(to):
            await self._peers.stub(to).Abort(message, timeout=ABORT_TIMEOUT_S)

    async def _announce(self, to: InstanceId, announcement: Announcement, timeout_s: float) -> None:
        message = announcement_to_message(announcement)
        with peer_errors(to):
            await self._peers.stub(to).Announce(message, timeout=timeout_s)
