"""One turn, first come first served."""

import pytest

from memserve_jax.mempool.turns import Turns


def test_the_first_has_it_and_others_follow_in_order():
    turns, order = Turns(), []
    for name in "abc":
        turns.take(name, lambda name=name: order.append(name))
    assert order == ["a"] and turns.has("a") and turns.num_waiting == 2
    turns.give_back("a")
    turns.give_back("b")
    assert order == ["a", "b", "c"] and turns.has("c") and turns.num_waiting == 0


def test_who_stops_waiting_is_never_granted():
    turns, order = Turns(), []
    for name in "abc":
        turns.take(name, lambda name=name: order.append(name))
    turns.give_back("b")
    turns.give_back("a")
    assert order == ["a", "c"]


def test_a_stranger_gives_back_nothing():
    turns = Turns()
    turns.take("a", lambda: None)
    turns.give_back("x")
    assert turns.has("a")


def test_nobody_queues_twice():
    turns = Turns()
    turns.take("a", lambda: None)
    with pytest.raises(AssertionError, match="here already"):
        turns.take("a", lambda: None)
