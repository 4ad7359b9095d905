import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.core.types import FinishReason, SamplingParams
from memserve_jax.engine.output import Answer, first_stop, num_ambiguous

EOS = 0


class WordStream:
    """Token i is the i-th of some pieces of text; a lone surrogate half waits for the flush."""

    def __init__(self, pieces):
        self.pieces, self.pending = pieces, ""

    def push(self, token_ids):
        return "".join(self.pieces[token] for token in token_ids)

    def flush(self):
        return self.pending


def run(pieces, *, eos_at=None, pending="", max_tokens=100, **sampling):
    """Feeds pieces as tokens 1, 2, ... until the answer ends; EOS before piece `eos_at`."""
    stream = WordStream(["", *pieces])
    stream.pending = pending
    answer = Answer(
        SamplingParams(**sampling),
        eos_token_ids=frozenset({EOS}),
        max_tokens=max_tokens,
        stream=stream,
    )
    shown = []
    for token in range(1, len(pieces) + 1):
        if eos_at == token:
            shown.append(answer.push(EOS).text)
        if answer.finish_reason is None:
            shown.append(answer.push(token).text)
        if answer.finish_reason is not None:
            break
    return shown, answer


def test_eos_ends_an_answer_and_shows_nothing():
    shown, answer = run(["a", "b", "c"], eos_at=3)
    assert shown == ["a", "b", ""]
    assert answer.finish_reason is FinishReason.STOP
    assert answer.num_tokens == 3


@given(st.lists(st.sampled_from(["a", "ab", "ba", "é"]), min_size=2, max_size=8), st.data())
def test_a_resumed_answer_shows_the_rest(pieces, data):
    shown, whole = run(pieces, stop=("aba",))
    num_given = data.draw(st.integers(0, max(0, whole.num_tokens - 1)))
    rest = Answer(
        SamplingParams(stop=("aba",)),
        eos_token_ids=frozenset({EOS}),
        max_tokens=100,
        stream=WordStream(["", *pieces]),
    )
    rest.resume(range(1, num_given + 1))
    assert rest.num_tokens == num_given
    texts = [rest.push(token).text for token in range(num_given + 1, whole.num_tokens + 1)]
    assert texts == shown[num_given:]
    assert rest.finish_reason is whole.finish_reason


def test_ignore_eos_ignores_eos_only():
    shown, answer = run(["a", "b"], eos_at=2, ignore_eos=True)
    assert shown == ["a", "", "b"]
    assert answer.finish_reason is None
    shown, answer = run(["a", "b", "c"], ignore_eos=True, stop_token_ids=frozenset({2}))
    assert shown == ["a", ""]
    assert answer.finish_reason is FinishReason.STOP


def test_the_last_token_allowed_ends_by_length_and_flushes():
    shown, answer = run(["a", "b", "c"], max_tokens=2, pending="\ufffd")
    assert shown == ["a", "b\ufffd"]
    assert answer.finish_reason is FinishReason.LENGTH
    shown, answer = run(["a", "b", "c"], max_tokens=2, eos_at=2)
    assert answer.finish_reason is FinishReason.STOP


def test_a_stop_string_across_tokens_is_held_back_and_cut():
    shown, answer = run(["xE", "N", "Dy", "z"], stop=("END",))
    assert shown == ["x", "", ""]
    assert answer.finish_reason is FinishReason.STOP
    assert answer.num_tokens == 3


def test_what_turns_out_to_be_no_stop_string_is_shown():
    shown, _ = run(["xE", "N", "E", "q"], stop=("END",))
    assert shown == ["x", "", "EN", "Eq"]
    shown, answer = run(["xE", "N"], stop=("END",), max_tokens=2)
    assert "".join(shown) == "xEN"
    assert answer.finish_reason is FinishReason.LENGTH


def test_held_text_is_shown_when_eos_comes_first():
    shown, answer = run(["xEN", "D"], stop=("END",), eos_at=2)
    assert shown == ["x", "EN"]
    assert answer.finish_reason is FinishReason.STOP


def test_the_stop_string_that_is_complete_first_wins():
    assert first_stop("abcd", ("bcd", "c")) == 2
    assert first_stop("abcd", ("bc", "c")) == 1
    assert first_stop("abcd", ("x",)) is None
    assert num_ambiguous("abc", ("cx", "bcx")) == 2
    assert num_ambiguous("abc", ()) == 0


@given(
    text=st.text("ab", max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple),
    cuts=st.lists(st.integers(1, 4), min_size=12, max_size=12),
)
def test_text_does_not_depend_on_how_tokens_cut_it(text, stops, cuts):
    pieces, rest = [], text
    for cut in cuts:
        if rest:
            pieces, rest = [*pieces, rest[:cut]], rest[cut:]
    many, answer = run(pieces, stop=stops, max_tokens=len(pieces) or 1)
    letters, by_letter = run(list(text), stop=stops, max_tokens=len(text) or 1)
    assert "".join(many) == "".join(letters)
    assert answer.finish_reason == by_letter.finish_reason
    if (cut := first_stop(text, stops)) is not None:
        assert "".join(many) == text[:cut]
    elif pieces:
        assert "".join(many) == text


def test_no_token_may_follow_the_end():
    _, answer = run(["a"], max_tokens=1)
    with pytest.raises(AssertionError):
        answer.push(1)
