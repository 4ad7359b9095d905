"""How often something may happen."""

import hypothesis.strategies as st
from hypothesis import given

from scheduler.allowance import Allowance


def test_a_burst_then_a_rate():
    allowance = Allowance(burst=2, per_s=0.5, now_s=10.0)
    assert [allowance.take(10.0) for _ in range(3)] == [True, True, False]
    assert [allowance.take(11.9), allowance.take(12.0), allowance.take(12.0)] == [
        False,
        True,
        False,
    ]


@given(st.lists(st.floats(0, 5), max_size=60), st.integers(1, 5), st.floats(0.1, 4))
def test_never_more_than_the_burst_and_the_rate(pauses_s, burst, per_s):
    allowance, now_s, taken = Allowance(burst=burst, per_s=per_s, now_s=0.0), 0.0, 0
    for pause_s in pauses_s:
        now_s += pause_s
        taken += allowance.take(now_s)
        assert taken <= burst + now_s * per_s + 1e-6
