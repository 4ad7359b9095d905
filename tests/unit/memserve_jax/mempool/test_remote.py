"""The table of a remote lease's phases."""

import pytest

from memserve_jax.core.types import BlockAddress, BlockId, InstanceId, Tier, TransferId
from memserve_jax.mempool.remote import REMOTE_TRANSITIONS, RemoteLease, RemotePhase


def make_lease(given_back):
    return RemoteLease(
        TransferId("r"), InstanceId("d0"), 1, Tier.HBM, deadline_s=1.0, give_back=given_back.append
    )


def test_every_phase_is_in_the_table_and_leads_to_the_end():
    assert REMOTE_TRANSITIONS.keys() == set(RemotePhase)
    for phase, following in REMOTE_TRANSITIONS.items():
        assert phase is RemotePhase.ENDED or RemotePhase.ENDED in following


def test_an_ended_lease_names_no_blocks_and_is_given_back_once():
    given_back = []
    with make_lease(given_back) as lease:
        lease.blocks = (BlockAddress(InstanceId("d0"), 1, Tier.HBM, BlockId(0)),)
        lease.advance(RemotePhase.HELD)
    assert given_back == [lease]
    lease.advance(RemotePhase.ENDED)
    assert lease.blocks == ()
    lease.close()
    assert given_back == [lease]
    with pytest.raises(AssertionError, match="r: ended -> held"):
        lease.advance(RemotePhase.HELD)
