import jax.numpy as jnp
import pytest

from memserve_jax.bench.bounds import CopyProbe, MatmulProbe, ReadProbe, seconds_of
from memserve_jax.core.clock import ManualClock


class StepClock(ManualClock):
    """Goes on by half a second whenever it is read."""

    def now_s(self) -> float:
        self.advance(0.5)
        return super().now_s()


def test_rates_are_work_over_seconds():
    assert ReadProbe(StepClock(), num_bytes=4096).bytes_per_s() == pytest.approx(4096 / 0.5)
    assert CopyProbe(StepClock(), num_bytes=4096).bytes_per_s() == pytest.approx(2 * 4096 / 0.5)
    probe = MatmulProbe(StepClock(), "float32", size=16)
    assert probe.flops_per_s() == pytest.approx(2 * 16**3 / 0.5)


def test_the_work_is_waited_for():
    done = []

    def work():
        done.append(True)
        return jnp.ones(())

    assert seconds_of(work, StepClock()) == pytest.approx(0.5)
    assert done == [True]
