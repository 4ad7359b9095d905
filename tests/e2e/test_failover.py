"""Instances that die or hang under a request, as processes: the client sees one whole answer.

The same tokens, the same text, every token once, the usage of one request, and no survivor holds
anything afterwards.
"""

import pathlib
import signal
from collections.abc import Iterable

import numpy as np
import pytest

from memserve_jax.client import Answer
from tests.helpers.failover_lab import (
    GREEDY,
    NUM_TOKENS,
    SAMPLED,
    FailoverLab,
    Moment,
    failover_lab,
)
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("llama3")
KILL, STOP = signal.SIGKILL, signal.SIGSTOP
FEW = (  # in `make test`
    Moment("p", "transfer.moving", "p", KILL),
    Moment("d", "answer.9", "d", STOP),
)
MOMENTS = tuple(
    Moment(place, phase, victim, number)
    for place, phase in (
        ("p", "sequence.waiting"),
        ("p", "sequence.prefilling"),
        ("p", "transfer.pending"),
        ("p", "transfer.moving"),
        ("p", "transfer.committing"),
        ("d", "sequence.awaiting_kv"),
        ("d", "reservation.open"),
        ("d", "reservation.landed"),
        ("d", "sequence.running"),
        ("d", "answer.2"),
        ("d", "answer.119"),
    )
    for victim in ("p", "d")
    for number in (KILL, STOP)
)


def expect_same(got: Answer, wanted: Answer, what: object) -> None:
    assert got.token_ids == wanted.token_ids, what
    assert (got.text, got.finish_reason) == (wanted.text, wanted.finish_reason), what
    np.testing.assert_allclose(got.logprobs, wanted.logprobs, atol=1e-3, err_msg=str(what))
    assert got.usage == wanted.usage, what
    assert got.usage.completion_tokens == NUM_TOKENS
    assert 0 < got.timing.ttft_s <= got.timing.jct_s


def disturb(lab: FailoverLab, moments: Iterable[Moment], **sampling: object) -> None:
    wanted = lab.undisturbed(**sampling)
    for moment in moments:
        expect_same(lab.disturbed_at(moment, **sampling), wanted, moment)
        lab.expect_at_rest()


def test_either_of_a_pair_dies_or_hangs(tmp_path: pathlib.Path):
    with failover_lab(GOLDEN, "2p2d", folder=tmp_path) as lab:
        disturb(lab, FEW, **GREEDY)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_of_two_dies_and_then_the_last_one_which_comes_back(tmp_path: pathlib.Path):
    with failover_lab(GOLDEN, "2c", folder=tmp_path) as lab:
        disturb(lab, [Moment("c", "answer.30", "c", KILL)], **GREEDY)
        lab.cluster.kill("c1")
        moment = Moment("c", "answer.60", "c", KILL, is_awaited=True)
        expect_same(lab.disturbed_at(moment, **GREEDY), lab.undisturbed(**GREEDY), moment)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_any_moment_of_a_pair(sampling: dict[str, object], tmp_path: pathlib.Path):
    with failover_lab(GOLDEN, "2p2d", folder=tmp_path) as lab:
        disturb(lab, MOMENTS, **sampling)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_any_moment_of_a_colocated_instance(tmp_path: pathlib.Path):
    phases = ("sequence.waiting", "sequence.prefilling", "sequence.running", "answer.119")
    moments = [Moment("c", phase, "c", number) for phase in phases for number in (KILL, STOP)]
    with failover_lab(GOLDEN, "2c", folder=tmp_path) as lab:
        disturb(lab, moments, **GREEDY)
        disturb(lab, moments, **SAMPLED)
