"""MemPool's control channel: its words on the wire."""

import pytest

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.types import BlockId, InstanceId, Tier, TransferId
from memserve_jax.mempool.announce import Announcement
from memserve_jax.mempool.control import ReserveAnswer, ReserveCall
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.transport import Endpoint
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.serving.pool_channel import (
    announcement_from_message,
    announcement_to_message,
    answer_from_message,
    answer_to_message,
    reserve_from_message,
    reserve_to_message,
)


def test_a_reservation_survives_the_wire():
    call = ReserveCall(
        transfer_id=TransferId("p0@3/9"),
        sender=InstanceId("p0"),
        sender_epoch=2**53,
        receiver_epoch=4,
        token_ids=(1, 2, 3, 4, 5),
        salt="tenant",
        first_block=1,
        num_blocks=2,
        insert=True,
        may_wait=False,
        private=b"\x00\xff",
        extra_blocks=3,
        tier=Tier.HOST,
        timeout_s=1.5,
    )
    assert reserve_from_message(reserve_to_message(call)) == call


def test_what_is_absent_stays_absent():
    call = ReserveCall(
        transfer_id=TransferId("p0@3/9"),
        sender=InstanceId("p0"),
        sender_epoch=1,
        receiver_epoch=None,
        token_ids=(),
        num_blocks=2,
        insert=False,
        timeout_s=1.0,
    )
    assert reserve_from_message(reserve_to_message(call)) == call


def test_a_tier_nobody_knows_is_named():
    message = pb.ReserveRequest(transfer_id="t", tier="tape")
    with pytest.raises(InvalidRequestError, match="tier: got 'tape', allowed: hbm, host, disk"):
        reserve_from_message(message)


def test_answers_survive_the_wire():
    yes = ReserveAnswer(
        accepted=True,
        num_held_blocks=2,
        tensor_parallelism=4,
        receiver_epoch=9,
        blocks=(BlockId(0), BlockId(7)),
        endpoints=(Endpoint("device_put", "here"), Endpoint("tcp", "127.0.0.1:9")),
        ticket=b"\x00\xff",
    )
    no = ReserveAnswer(accepted=False, refused_because="no memory", receiver_epoch=9)
    assert answer_from_message(answer_to_message(yes)) == yes
    assert answer_from_message(answer_to_message(no)) == no


def test_announcements_survive_the_wire():
    announcement = Announcement(
        transfer_id=TransferId("p0@3/9"),
        transport="jax_transfer",
        part=Part(1, 2, 3, 1, 1, 1),
        address="127.0.0.1:9",
        number=2**62,
        detail=b"\x00\xff",
    )
    assert announcement_from_message(announcement_to_message(announcement)) == announcement
