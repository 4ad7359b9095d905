"""The sender, the receiver or the scheduler stops for a while, at every moment of a request.

Nobody waits for it beyond the time-outs; other pairs of instances answer meanwhile; once it goes
on the cluster is as before, and nothing wrong has been delivered.
"""

import itertools
import pathlib

import pytest

from tests.helpers.goldens import load_golden
from tests.helpers.hang_lab import VICTIMS, HangLab, hang_lab
from tests.helpers.kill_lab import ENDS_WITHIN_S, MOMENTS

GOLDEN = load_golden("llama3")
FEW = (  # in `make test`
    ("p", "transfer.moving", "receiver"),
    ("d", "reservation.open", "sender"),
    ("d", "sequence.running", "scheduler"),
)


def stall(lab: HangLab, place: str, phase: str, victim: str) -> None:
    outcome = lab.stall(place, phase, victim)
    what = f"the {victim} stopped while {place} was at {phase}: {outcome}"
    assert outcome.seconds < ENDS_WITHIN_S, what
    if outcome.code == "OK":
        assert outcome.token_ids == lab.expected, what
    else:
        # Behind a scheduler that says nothing only the client's own deadline is true.
        ends = "DEADLINE_EXCEEDED" if victim == "scheduler" else "UNAVAILABLE"
        assert outcome.code == ends, what
        assert outcome.token_ids == lab.expected[: len(outcome.token_ids)], what


def test_who_stops_stalls_nobody_else(tmp_path: pathlib.Path):
    with hang_lab(GOLDEN, folder=tmp_path, overrides={"mempool.transports": "[tcp]"}) as lab:
        for place, phase, victim in FEW:
            stall(lab, place, phase, victim)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("transport", ["tcp", "jax_transfer"])
def test_who_stops_at_any_moment(transport: str, tmp_path: pathlib.Path):
    overrides = {"mempool.transports": f"[{transport}]"}
    with hang_lab(GOLDEN, folder=tmp_path, overrides=overrides) as lab:
        for (place, phase), victim in itertools.product(MOMENTS, VICTIMS):
            stall(lab, place[0], phase, victim)
