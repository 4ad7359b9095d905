import dataclasses
import itertools

import numpy as np
import pytest

from memserve_jax.bench.lengths import Lengths
from memserve_jax.bench.workload import (
    FIRST_PLAIN_TOKEN,
    RandomWorkload,
    Session,
    TextTurn,
    poisson_arrivals_s,
    repeat,
    take,
)
from memserve_jax.core.errors import ConfigError

WORKLOAD = RandomWorkload(
    prompt_tokens=Lengths("uniform", (40, 60)),
    output_tokens=Lengths("uniform", (1, 8)),
    turn_tokens=Lengths("fixed", (5,)),
    num_turns=3,
    shared_prefix_tokens=32,
    num_shared_prefixes=2,
    vocab_size=100,
    seed=7,
)


def first(workload, count):
    return list(itertools.islice(workload.sessions(), count))


def test_sessions_are_as_asked():
    sessions = first(WORKLOAD, 50)
    assert [session.session_id for session in sessions[:3]] == ["s0", "s1", "s2"]
    for session in sessions:
        assert len(session.turns) == 3
        assert 40 <= len(session.turns[0].token_ids) <= 60
        assert [len(turn.token_ids) for turn in session.turns[1:]] == [5, 5]
        for turn in session.turns:
            assert 1 <= turn.output_tokens <= 8
            assert all(FIRST_PLAIN_TOKEN <= token < 100 for token in turn.token_ids)
    assert len({len(session.turns[0].token_ids) for session in sessions}) > 5


def test_prefixes_are_shared_in_turn_and_the_rest_differs():
    prompts = [session.turns[0].token_ids for session in first(WORKLOAD, 6)]
    assert prompts[0][:32] == prompts[2][:32] == prompts[4][:32]
    assert prompts[1][:32] == prompts[3][:32] != prompts[0][:32]
    assert len({prompt[32:40] for prompt in prompts}) == 6


def test_the_same_seed_gives_the_same_sessions_and_another_seed_others():
    assert first(WORKLOAD, 5) == first(WORKLOAD, 9)[:5]
    other = dataclasses.replace(WORKLOAD, seed=8)
    assert first(other, 1) != first(WORKLOAD, 1)


@pytest.mark.parametrize("shared", [40, 100])
def test_a_prefix_that_leaves_no_prompt_is_refused(shared):
    with pytest.raises(ConfigError, match=f"--shared-prefix-tokens: got {shared}, allowed: less"):
        dataclasses.replace(WORKLOAD, shared_prefix_tokens=shared)


def test_a_vocabulary_without_plain_tokens_is_refused():
    with pytest.raises(ConfigError, match="--vocab-size: got 3"):
        dataclasses.replace(WORKLOAD, vocab_size=3)


def test_take_counts_turns_and_cuts_the_last_session():
    sessions = list(take(WORKLOAD.sessions(), 7))
    assert [len(session.turns) for session in sessions] == [3, 3, 1]
    assert list(take(iter(()), 7)) == []


def test_repeat_gives_new_names_to_later_rounds():
    one = Session(session_id="a", turns=(TextTurn(text="hello", output_tokens=1),))
    sessions = list(itertools.islice(repeat([one]), 3))
    assert [session.session_id for session in sessions] == ["a", "a#1", "a#2"]
    assert sessions[2].turns == one.turns


def test_poisson_arrivals_have_the_rate_and_its_spread():
    arrivals = np.array(list(itertools.islice(poisson_arrivals_s(5.0, seed=1), 4000)))
    gaps = np.diff(arrivals, prepend=0.0)
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() == pytest.approx(0.2, rel=0.07)  # exponential: as wide as its mean
    again = list(itertools.islice(poisson_arrivals_s(5.0, seed=1), 10))
    assert again == arrivals[:10].tolist()


def test_an_infinite_rate_has_all_arrive_at_once():
    assert list(itertools.islice(poisson_arrivals_s(float("inf"), seed=1), 3)) == [0.0, 0.0, 0.0]
