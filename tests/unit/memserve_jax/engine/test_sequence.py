import pytest

from memserve_jax.engine.sequence import TRANSITIONS, Duty, Phase
from tests.helpers.sequences import make_sequence


def test_every_phase_but_the_last_can_end():
    assert set(TRANSITIONS) == set(Phase)
    for phase, after in TRANSITIONS.items():
        assert (Phase.FINISHED in after) == (phase is not Phase.FINISHED)


@pytest.mark.parametrize(
    ("phase", "to"), [(p, q) for p in Phase for q in Phase if q not in TRANSITIONS[p]]
)
def test_other_moves_are_bugs(phase, to):
    sequence = make_sequence()
    sequence.phase = phase
    with pytest.raises(AssertionError):
        sequence.enter(to)


def test_an_answer_needs_no_kv_for_its_last_token():
    assert make_sequence(prompt=5, max_tokens=4).max_kv_tokens == 8
    assert make_sequence(prompt=5, max_tokens=4, duty=Duty.PREFILL).max_kv_tokens == 5


def test_counts_tell_when_no_step_is_wanted():
    sequence = make_sequence(prompt=5, max_tokens=2)
    sequence.num_computed, sequence.num_unread = 5, 1
    assert sequence.num_left == 1
    assert sequence.wants_step
    sequence.token_ids.append(7)
    assert not sequence.wants_step  # one read, one on its way


def test_history_ends_before_the_last_token():
    sequence = make_sequence(prompt=5)
    sequence.token_ids += [7, 8]
    sequence.num_computed = 7  # a step too many, as after an unforeseen end
    assert sequence.history == [0, 1, 2, 3, 4, 7]
    sequence.num_computed = 3
    assert sequence.history == [0, 1, 2]
