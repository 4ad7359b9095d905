"""Who moves from one role to the other, and when nobody does."""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from memserve_jax.core.config import parse_config
from memserve_jax.core.types import InstanceId, Role
from scheduler.planner import (
    OTHER,
    Balance,
    Candidate,
    Course,
    Decision,
    Rules,
    Side,
    Verdict,
    decide,
)

RULES = Rules(
    wait_s={Role.PREFILL: 1.0, Role.DECODE: 2.0}, idle_usage=0.5, hold_s=10.0, pause_s=60.0
)


def side(role: str, wait_s: float, *usages: float) -> Side:
    candidates = tuple(
        Candidate(instance=InstanceId(f"{role}{number}"), usage=usage)
        for number, usage in enumerate(usages)
    )
    return Side(wait_s=wait_s, candidates=candidates)


def balance(prefill: Side, decode: Side, now_s: float = 0.0, *, settled: bool = True) -> Balance:
    sides = {Role.PREFILL: prefill, Role.DECODE: decode}
    return Balance(now_s=now_s, sides=sides, is_settled=settled)


SHORT_OF_PREFILL = balance(side("p", 1.5, 1.0), side("d", 0.0, 0.25, 0.2))


def at(now_s: float, look: Balance = SHORT_OF_PREFILL) -> Balance:
    return dataclasses.replace(look, now_s=now_s)


def test_a_shortage_that_lasts_beside_an_idle_side_moves_one():
    decision, course = decide(at(100.0), Course(), RULES)
    assert decision.verdict is Verdict.HOLD and "for 0.0 s, needed: 10 s" in decision.why
    decision, course = decide(at(109.9), course, RULES)
    assert decision.verdict is Verdict.HOLD and decision.instance is None
    decision, course = decide(at(110.0), course, RULES)
    assert decision == Decision(
        verdict=Verdict.MOVE,
        why="prefill is short: 1.50 s to wait, allowed: 1 s; decode with one less would be used "
        "to 45%",
        instance=InstanceId("d0"),
        role=Role.PREFILL,
    )
    assert course.short is None  # the next one has to last as well


def test_a_shortage_that_ends_meanwhile_begins_again():
    _, course = decide(at(0.0), Course(), RULES)
    enough = balance(side("p", 0.9, 1.0), side("d", 0.0, 0.1, 0.1), 5.0)
    decision, course = decide(enough, course, RULES)
    assert decision.verdict is Verdict.ENOUGH
    decision, course = decide(at(12.0), course, RULES)
    assert decision.verdict is Verdict.HOLD and course.since_s == 12.0


def test_after_a_move_there_is_a_pause():
    course = Course(short=Role.PREFILL, since_s=0.0, moved_s=50.0)
    decision, course = decide(at(109.0), course, RULES)
    assert decision.verdict is Verdict.PAUSE and "59.0 s ago, needed: 60 s" in decision.why
    decision, _ = decide(at(110.0), course, RULES)
    assert decision.verdict is Verdict.MOVE


@pytest.mark.parametrize(
    ("prefill", "decode", "verdict"),
    [
        (side("p", 1.0, 1.0), side("d", 0.0, 0.0, 0.0), Verdict.ENOUGH),  # just as long as allowed
        (side("p", 9.0, 1.0), side("d", 0.0, 0.0), Verdict.LAST),
        (side("p", 9.0), side("d", 0.0), Verdict.LAST),
        (side("p", 9.0, 1.0), side("d", 0.0, 0.3, 0.3), Verdict.BUSY),  # one would have 0.6
        (side("p", 9.0, 1.0), side("d", 0.0, 0.3, 0.3, 0.3), Verdict.HOLD),
        (side("p", 9.0, 0.9, 1.0), side("d", 9.0, 1.0, 1.0), Verdict.BUSY),
        # Decode holds prefill up: prompts wait, and their instances do nothing.
        (side("p", 9.0, 0.1, 0.1), side("d", 3.0, 1.0, 1.0), Verdict.HOLD),
        (side("p", 0.0, 0.1, 0.1), side("d", 2.1, 1.0), Verdict.HOLD),
    ],
)
def test_what_is_short_and_what_idles(prefill, decode, verdict):
    decision, course = decide(balance(prefill, decode), Course(), RULES)
    assert decision.verdict is verdict, decision.why
    assert (course.short is not None) == (verdict is Verdict.HOLD)


def test_nothing_moves_while_anything_does():
    course = Course(short=Role.PREFILL, since_s=0.0)
    decision, course = decide(dataclasses.replace(at(100.0), is_settled=False), course, RULES)
    assert decision.verdict is Verdict.UNSETTLED and course.short is None


def test_who_has_least_to_lose_goes():
    candidates = (
        Candidate(instance=InstanceId("d0"), usage=0.1, sequences=2),
        Candidate(instance=InstanceId("d1"), usage=0.1, sequences=1, indexed_blocks=9),
        Candidate(instance=InstanceId("d3"), usage=0.1, sequences=1, indexed_blocks=8),
        Candidate(instance=InstanceId("d2"), usage=0.1, sequences=1, indexed_blocks=8),
    )
    rules = dataclasses.replace(RULES, hold_s=0.0)
    for order in (candidates, candidates[::-1]):
        look = balance(side("p", 9.0, 1.0), Side(wait_s=0.0, candidates=order))
        assert decide(look, Course(), rules)[0].instance == "d2"


def test_the_rules_are_the_config_s():
    def rules(**section) -> Rules:
        return Rules.of(parse_config({"scheduler": section}).scheduler)

    assert rules().wait_s == {Role.PREFILL: 2.0, Role.DECODE: 1.0}
    assert rules(slo={"ttft_s": 3.0}).wait_s[Role.PREFILL] == 1.5
    planner = {"prefill_wait_s": 0.3, "decode_wait_s": 0.4, "hold_s": 1.0, "pause_s": 2.0}
    assert rules(slo={"ttft_s": 3.0}, planner={**planner, "idle_usage": 0.7}) == Rules(
        wait_s={Role.PREFILL: 0.3, Role.DECODE: 0.4}, idle_usage=0.7, hold_s=1.0, pause_s=2.0
    )


usages = st.lists(st.floats(0, 1), max_size=4)
looks = st.builds(
    lambda prefill_s, decode_s, prefill, decode, settled: balance(
        side("p", prefill_s, *prefill), side("d", decode_s, *decode), settled=settled
    ),
    *(st.floats(0, 5), st.floats(0, 5), usages, usages),
    st.sampled_from([True, True, True, False]),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0.1, 8), looks), max_size=40), st.floats(0, 5))
def test_over_time_nobody_moves_in_haste(steps, move_s):
    """Whatever is seen: each move was called for all along, and moves keep their distance."""
    now_s, course, ended_s = 0.0, Course(), None
    history: list[Balance] = []
    for step_s, look in steps:
        now_s += step_s
        history.append(at(now_s, look))
        decision, course = decide(history[-1], course, RULES)
        assert (decision.instance is not None) == (decision.verdict is Verdict.MOVE)
        if decision.verdict is not Verdict.MOVE:
            continue
        role = decision.role
        assert role is not None and look.is_settled
        giver = look.sides[OTHER[role]]
        assert decision.instance in [each.instance for each in giver.candidates]
        assert len(giver.candidates) >= 2
        held = [each for each in history if each.now_s > now_s - RULES.hold_s]
        for each in held:
            assert each.is_settled and each.sides[role].wait_s > RULES.wait_s[role]
            assert each.sides[OTHER[role]].usage_with_one_less <= RULES.idle_usage
        assert ended_s is None or now_s - ended_s >= RULES.pause_s
        now_s += move_s
        ended_s, history = now_s, []
        course = dataclasses.replace(course, moved_s=now_s)
