"""The table of a transfer's phases."""

import pytest

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.transfer import TRANSITIONS, Transfer, TransferPhase


def test_every_phase_can_end_and_nothing_follows_an_end():
    assert TRANSITIONS.keys() == set(TransferPhase)
    ends = {TransferPhase.DONE, TransferPhase.FAILED}
    for phase, following in TRANSITIONS.items():
        assert (not following) == (phase in ends)
        assert phase in ends or TransferPhase.FAILED in following


@pytest.mark.parametrize("phase", list(TransferPhase))
def test_only_moves_of_the_table_are_made(phase):
    for following in TransferPhase:
        transfer = Transfer(TransferId("t"), InstanceId("d0"), deadline_s=1.0)
        transfer._phase = phase
        if following in TRANSITIONS[phase]:
            transfer.advance(following)
            assert transfer.phase is following
        else:
            with pytest.raises(AssertionError, match=f"t: {phase} -> {following}"):
                transfer.advance(following)


def test_callbacks_run_once_at_the_end():
    transfer = Transfer(TransferId("t"), InstanceId("d0"), deadline_s=1.0)
    seen = []
    transfer.on_done(lambda each: seen.append(each.error))
    transfer.advance(TransferPhase.RESERVED)
    assert seen == []
    error = TransferFailedError("lost")
    transfer.fail(error)
    assert seen == [error] and transfer.is_ended
