"""What a pool can never take is refused with what was wanted and what there is."""

import dataclasses

import pytest

from memserve_jax.core.types import Tier
from memserve_jax.mempool.admission import why_never
from memserve_jax.mempool.control import ReserveCall
from memserve_jax.mempool.membership import Membership
from memserve_jax.mempool.reservation import Reservation
from tests.helpers.pools import make_pool

CALL = ReserveCall(
    transfer_id="t",
    sender="p0",
    sender_epoch=3,
    receiver_epoch=None,
    token_ids=tuple(range(8)),
    num_blocks=4,
    insert=True,
    timeout_s=1.0,
)


@pytest.fixture(scope="module")
def memory():
    return make_pool("d0", hbm_blocks=8, host_blocks=3)._memory


def why(memory, earlier=None, members=None, **fields):
    call = dataclasses.replace(CALL, **fields)
    return why_never(call, memory, members or Membership(), earlier)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"receiver_epoch": 1}, None),
        ({"receiver_epoch": 2}, "d0 is in epoch 1, not 2"),
        ({"num_blocks": 3}, "3 blocks do not hold 8 tokens"),
        ({"token_ids": ()}, "blocks without tokens cannot be matched, inserted or moved"),
        ({"extra_blocks": 4}, None),
        ({"extra_blocks": 5}, "wanted 4 blocks and 5 beside, 8 in all"),
        ({"tier": Tier.DISK}, "d0 takes nothing into disk"),
        (
            {"tier": Tier.HOST},
            "wanted 4 blocks in host and 0 beside in hbm, 3 and 8 in all",
        ),
        ({"tier": Tier.HOST, "first_block": 1, "num_blocks": 3}, None),
        ({"into": "r"}, "r holds no blocks here"),
    ],
)
def test_calls_by_themselves(memory, fields, reason):
    assert why(memory, **fields) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"sender": "p1"}, "r belongs to p1"),
        ({"sender_epoch": 2}, "r belongs to p0"),
        ({"tier": Tier.HOST}, "r holds blocks in host, wanted hbm"),
        ({"num_blocks": 3}, "r holds 3 blocks, wanted 4"),
    ],
)
def test_blocks_reserved_before(fields, reason):
    pool = make_pool("d0", host_blocks=4)
    call = {"token_ids": (), "insert": False, "transfer_id": "r"} | fields
    call = dataclasses.replace(CALL, **call)
    with pool.alloc_mem(call.num_blocks, call.tier) as lease:
        blocks = [address.block for address in lease.blocks]
        earlier = Reservation(
            call=call, respond=lambda _: None, deadline_s=1.0, lease=lease, blocks=blocks
        )
        assert why(pool._memory, earlier, into="r") == reason


def test_a_sender_that_is_over_gets_nothing(memory):
    members = Membership()
    members.change({"p0": 4})
    assert why(memory, members=members) == "p0 epoch 3 is over"
