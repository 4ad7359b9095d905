"""kill -9 of the sender, the receiver or the scheduler, at every moment of a request.

The request ends with UNAVAILABLE in time, or with its whole answer; no survivor holds anything
for the dead; the cluster answers as before once the victim is back.
"""

import itertools
import pathlib
import random
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.helpers.goldens import load_golden
from tests.helpers.kill_lab import (
    ENDS_WITHIN_S,
    MOMENTS,
    NUM_TOKENS,
    PROMPT,
    VICTIMS,
    KillLab,
    Outcome,
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


def strike(lab: KillLab, place: str, phase: str, victim: str) -> Outcome:
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
    return outcome


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
    cells = [(*moment, victim) for moment, victim in itertools.product(MOMENTS, VICTIMS)]
    found: dict[tuple[str, str, str], list[Outcome]] = {cell: [] for cell in cells}
    num_kills = 0
    with kill_lab(GOLDEN, folder=tmp_path, overrides={"mempool.transports": "[tcp]"}) as lab:
        while num_kills < LONG_RUN_KILLS:
            draw.shuffle(cells)
            for cell in cells[: LONG_RUN_KILLS - num_kills]:
                found[cell].append(strike(lab, *cell))
                num_kills += 1
                with capsys.disabled():
                    sys.stdout.write(f"\n{num_kills:4d} {' '.join(cell)}: {found[cell][-1]}")
                    sys.stdout.flush()
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *table_of(found)]) + "\n")
    assert all(found.values()), "a cell is empty"


def table_of(found: dict[tuple[str, str, str], list[Outcome]]) -> Iterator[str]:
    """Gives lines of Markdown: a row a state, a column a victim."""
    every = [outcome for outcomes in found.values() for outcome in outcomes]
    yield f"{len(every)} kills: whole answers / `UNAVAILABLE` (longest s until nothing was held)"
    yield ""
    yield f"| state | {' | '.join(f'{victim} died' for victim in VICTIMS)} |"
    yield f"|---|{'---|' * len(VICTIMS)}"
    for place, phase in MOMENTS:
        row = [found[place, phase, victim] for victim in VICTIMS]
        yield f"| {place} {phase} | {' | '.join(map(cell_of, row))} |"
    ended_s = sorted(outcome.seconds for outcome in every)
    held_s = sorted(outcome.held_s for outcome in every)
    for what, seconds in (("the request had ended", ended_s), ("nothing was held", held_s)):
        middle, last = seconds[len(seconds) // 2], seconds[-1]
        yield f"\nFrom the kill until {what}: median {middle:.2f} s, longest {last:.2f} s"


def cell_of(outcomes: list[Outcome]) -> str:
    """Returns a cell of the table."""
    codes = Counter(outcome.code for outcome in outcomes)
    longest_s = max((outcome.held_s for outcome in outcomes), default=0.0)
    return f"{codes['OK']} / {codes['UNAVAILABLE']} ({longest_s:.1f})"
