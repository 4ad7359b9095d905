"""kill -9 of the sender, the receiver or the scheduler, at every moment of a request.

The request ends with UNAVAILABLE in time, or with its whole answer; no survivor holds anything
for the dead; the cluster answers as before once the victim is back.
"""

import itertools
import pathlib
import random
import sys
from collections import Counter

import pytest

from tests.helpers.goldens import load_golden
from tests.helpers.kill_lab import (
    ENDS_WITHIN_S,
    MOMENTS,
    NUM_TOKENS,
    PROMPT,
    VICTIMS,
    KillLab,
    kill_lab,
)

GOLDEN = load_golden("llama3")
TRANSPORTS = ("tcp", "jax_transfer")
FEW = (  # in `make test`: one moment each of sending, landing, answering, sending back
    ("p0", "transfer.moving", "d0"),
    ("p0", "transfer.moving", "p0"),
    ("d0", "reservation.open", "p0"),
    ("d0", "sequence.running", "scheduler"),
    ("p0", "reservation-back.open", "d0"),
)
LONG_RUN_KILLS = 200


def strike(lab: KillLab, place: str, phase: str, victim: str) -> str:
    """Kills; asserts on what the client saw, and returns it."""
    outcome = lab.strike(place, phase, victim)
    expected = tuple(GOLDEN.tokens[PROMPT][:NUM_TOKENS])
    what = f"{victim} died while {place} was at {phase}: {outcome}"
    assert outcome.seconds < ENDS_WITHIN_S, what
    if outcome.code == "OK":
        assert outcome.token_ids == expected, what
    else:
        assert outcome.code == "UNAVAILABLE", what
        assert outcome.token_ids == expected[: len(outcome.token_ids)], what
    return outcome.code


def test_nothing_is_lost_when_one_dies(tmp_path: pathlib.Path):
    with kill_lab(GOLDEN, folder=tmp_path, overrides={"mempool.transports": "[tcp]"}) as lab:
        for place, phase, victim in FEW:
            strike(lab, place, phase, victim)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_moment_and_every_victim(transport: str, tmp_path: pathlib.Path):
    overrides = {"mempool.transports": f"[{transport}]"}
    with kill_lab(GOLDEN, folder=tmp_path, overrides=overrides) as lab:
        for (place, phase), victim in itertools.product(MOMENTS, VICTIMS):
            strike(lab, place, phase, victim)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_long_run_of_kills(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    """Every cell of state x victim, in random order, over and over; prints the table."""
    draw = random.Random(0)
    table: Counter[tuple[str, str, str]] = Counter()
    cells = list(itertools.product(MOMENTS, VICTIMS))
    with kill_lab(GOLDEN, folder=tmp_path, overrides={"mempool.transports": "[tcp]"}) as lab:
        while table.total() < LONG_RUN_KILLS:
            draw.shuffle(cells)
            for (place, phase), victim in cells[: LONG_RUN_KILLS - table.total()]:
                code = strike(lab, place, phase, victim)
                table[f"{place} {phase}", victim, code] += 1
    with capsys.disabled():
        lines = [f"\n{table.total()} kills: state x victim, answers / UNAVAILABLE"]
        for place, phase in MOMENTS:
            state = f"{place} {phase}"
            counts = [
                f"{victim} {table[state, victim, 'OK']}/{table[state, victim, 'UNAVAILABLE']}"
                for victim in VICTIMS
            ]
            lines.append(f"  {state:30s} {chr(32).join(counts)}")
            for victim in VICTIMS:
                assert any(table[state, victim, code] for code in ("OK", "UNAVAILABLE"))
        sys.stdout.write("\n".join(lines) + "\n")
