"""Fair queueing: shares by weight, nobody starves, whoever leaves costs nothing."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.fair_queue import SPARE_ACCOUNTS, FairQueue

TENANTS = ("a", "b", "c")


def make_queue(weights=None, patience_s=1e9):
    return FairQueue(weights=weights or {}, patience_s=patience_s)


def push(queue, tenant="a", priority=0, cost=1.0, now_s=0.0, item=None):
    return queue.push(item, tenant=tenant, priority=priority, cost=cost, now_s=now_s)


def served(queue, count, now_s=0.0):
    """Serves `count` and returns their tenants."""
    tenants = []
    for _ in range(count):
        place = queue.first(now_s)
        queue.serve(place)
        queue.check()
        tenants.append(place.tenant)
    return tenants


@given(
    st.dictionaries(st.sampled_from(TENANTS), st.sampled_from((0.5, 1.0, 3.0))),
    st.lists(st.floats(1.0, 50.0), min_size=1, max_size=5),
)
def test_those_who_always_wait_are_served_by_weight(weights, costs):
    queue = make_queue(weights)
    for index in range(300):
        for tenant in TENANTS:
            push(queue, tenant, cost=costs[index % len(costs)])
    got = dict.fromkeys(TENANTS, 0.0)
    while all(queue.num_of(tenant) for tenant in TENANTS):
        place = queue.first(0.0)
        queue.serve(place)
        got[place.tenant] += place.cost / weights.get(place.tenant, 1.0)
    most = 2 * max(costs) / min([1.0, *weights.values()])
    assert max(got.values()) - min(got.values()) <= most


@given(st.integers(0, 200), st.integers(1, 20))
def test_a_crowd_delays_a_newcomer_by_one_turn_each(crowd, tenants):
    queue = make_queue()
    for index in range(crowd):
        push(queue, f"t{index % tenants}")
    newcomer = push(queue, "new")
    assert queue.num_ahead("other", 0) <= tenants + 1
    order = []
    while newcomer not in order:
        order.append(queue.first(0.0))
        queue.serve(order[-1])
    assert len(order) <= tenants + 1


def test_better_priorities_go_first_and_fairness_is_within_one():
    queue = make_queue()
    for tenant in "aab":
        push(queue, tenant, priority=5)
    push(queue, "c", priority=-1)
    assert queue.num_ahead("d", 5) == 3  # c, and one each of a and b
    assert queue.num_ahead("a", 5) == 4
    assert queue.num_ahead("d", -2) == 0
    assert served(queue, 4) == ["c", "a", "b", "a"]


def test_who_has_waited_too_long_goes_once_in_four():
    queue = make_queue(patience_s=10.0)
    patient = push(queue, "p", priority=9, now_s=0.0)
    late = push(queue, "p", priority=9, now_s=1.0)
    for _ in range(9):
        push(queue, "hasty", priority=0, now_s=4.0)
    assert queue.first(5.0).tenant == "hasty"
    assert queue.first(11.0) is patient
    queue.serve(patient)
    order = []
    for _ in range(4):
        order.append(queue.first(12.0))
        queue.serve(order[-1])
    assert order.index(late) == 3


def test_idling_saves_nothing_up_and_work_not_done_is_given_back():
    queue = make_queue()
    for _ in range(10):
        push(queue, "busy", cost=10.0)
    served(queue, 5)
    for _ in range(10):
        push(queue, "idler", cost=10.0)
    assert served(queue, 4).count("idler") == 2  # level, not 50 tokens ahead
    queue.charge("busy", -20.0)  # its answers were shorter
    assert served(queue, 2) == ["busy", "busy"]
    queue.charge("nobody", 5.0)
    queue.check()


def test_accounts_are_few():
    queue = make_queue()
    for index in range(3 * SPARE_ACCOUNTS):
        push(queue, f"t{index}")
        served(queue, 1)
    queue.check()
    assert queue.first(0.0) is None and len(queue) == 0


class Machine(RuleBasedStateMachine):
    """The queue against a list of places."""

    def __init__(self):
        super().__init__()
        self.queue = make_queue({"a": 2.0}, patience_s=5.0)
        self.model = []
        self.now_s = 0.0

    @rule(tenant=st.sampled_from(TENANTS), priority=st.integers(-1, 1), cost=st.floats(0, 9))
    def come(self, tenant, priority, cost):
        self.model.append(push(self.queue, tenant, priority, cost, self.now_s))

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds):
        self.now_s += seconds

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def give_up(self, data):
        place = data.draw(st.sampled_from(self.model))
        self.queue.remove(place)
        self.model.remove(place)

    @precondition(lambda self: self.model)
    @rule()
    def go(self):
        place = self.queue.first(self.now_s)
        assert place in self.model
        line = [p for p in self.model if (p.tenant, p.priority) == (place.tenant, place.priority)]
        assert place is line[0], "one of a tenant overtook another"
        oldest_s = self.now_s - self.model[0].since_s
        if oldest_s < 5.0:
            assert place.priority == min(p.priority for p in self.model)
        self.queue.serve(place)
        self.model.remove(place)

    @rule(tenant=st.sampled_from(TENANTS), cost=st.floats(-9, 9))
    def settle(self, tenant, cost):
        self.queue.charge(tenant, cost)

    @invariant()
    def books_agree(self):
        self.queue.check()
        assert list(self.queue) == self.model
        assert len(self.queue) == len(self.model)
        for tenant in TENANTS:
            assert self.queue.num_of(tenant) == sum(p.tenant == tenant for p in self.model)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_an_empty_queue_has_nobody_to_go():
    assert make_queue().first(0.0) is None
    with pytest.raises(KeyError):
        queue = make_queue()
        place = push(queue)
        queue.remove(place)
        queue.remove(place)
