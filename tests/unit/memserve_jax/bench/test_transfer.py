import pytest

from memserve_jax.bench.transfer import TransferBenchOptions, _ratio, _repeats, _spread, run
from memserve_jax.bench.transfer_case import SHAPES


def test_ratios_are_of_each_round():
    assert _ratio([1.0, 2.0, 1.0], [2.0, 4.0, 1.0]) == 0.5
    assert _spread([1.0]) == 0.0 and _spread([1.0, 1.0, 1.0]) == 0.0


def test_small_sizes_are_repeated():
    assert (_repeats(1), _repeats(1 << 20), _repeats(1 << 30)) == (16, 4, 1)


@pytest.mark.slow
def test_a_run_measures_every_case():
    options = TransferBenchOptions(
        transports=("tcp",), shapes=SHAPES[:1], counts=(1,), num_rounds=2
    )
    seen = []
    report = run(options, lambda *progress: seen.append(progress))
    assert len(report.found) == 1 + 4 + 1  # the put, whole ones between all tiers, scattered
    assert all(found.num_calls == 1 and found.seconds > 0 for found in report.found)
    assert report.bounds and seen
