import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.bench.lengths import MAX_LENGTH, Lengths, parse_lengths
from memserve_jax.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", Lengths("fixed", (512,))),
        ("fixed:7", Lengths("fixed", (7,))),
        ("uniform:3:9", Lengths("uniform", (3, 9))),
        ("normal:100:10", Lengths("normal", (100, 10))),
        ("lognormal:100:0.5", Lengths("lognormal", (100, 0.5))),
        ("exponential:40", Lengths("exponential", (40,))),
    ],
)
def test_each_distribution_is_read(text, expected):
    assert parse_lengths(text, option="--x") == expected


@pytest.mark.parametrize(
    "text",
    ["", "0", "-3", "1.5", "nan", "inf", "uniform:5", "uniform:9:3", "uniform:1:2.5", "zipf:3",
     "normal:10:-1", "normal:0:1", "lognormal:10:nan", "uniform:1:2:3", "exponential:", "::",
     "99999999999", "lognormal:inf:1", "uniform:1:inf"],
)  # fmt: skip
def test_what_is_impossible_is_named(text):
    with pytest.raises(ConfigError, match=r"--prompt-tokens: got .* allowed: N \| uniform"):
        parse_lengths(text, option="--prompt-tokens")


@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_draws_keep_to_their_bounds(seed, least):
    random = np.random.default_rng(seed)
    for text in ("normal:5:30", "lognormal:5:2", "exponential:2", "uniform:1:9", "3"):
        assert parse_lengths(text, option="--x").sample(random, least=least) >= least
    assert 4 <= Lengths("uniform", (4, 6)).sample(random) <= 6


@pytest.mark.parametrize(
    ("text", "mean"), [("uniform:10:30", 20), ("normal:50:5", 50), ("exponential:40", 40)]
)
def test_means_are_as_said(text, mean):
    random = np.random.default_rng(0)
    lengths = parse_lengths(text, option="--x")
    drawn = [lengths.sample(random) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(mean, rel=0.05)


def test_a_wild_draw_stays_within_what_the_wire_can_say():
    random = np.random.default_rng(0)
    lengths = parse_lengths("lognormal:1000:1000", option="--x")
    assert {lengths.sample(random) for _ in range(100)} >= {1, MAX_LENGTH}


def test_lognormal_is_given_by_its_median():
    random = np.random.default_rng(0)
    drawn = [Lengths("lognormal", (200, 0.7)).sample(random) for _ in range(4000)]
    assert np.median(drawn) == pytest.approx(200, rel=0.05)
