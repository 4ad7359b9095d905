import pytest

from memserve_jax.core.config import parse_config
from memserve_jax.core.errors import ConfigError


def test_shares_are_as_given():
    section = parse_config({"scheduler": {"fairness": {"weights": {"gold": 3, "free": 0.5}}}})
    assert section.scheduler.fairness.weights == {"gold": 3.0, "free": 0.5}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"fairness": {"weights": {"gold": 0}}}, "fairness.weights.gold: got 0.0, allowed: above"),
        ({"fairness": {"weights": {"gold": float("inf")}}}, "fairness.weights.gold: got inf"),
        ({"fairness": {"by": "name"}}, "fairness.by: got 'name', allowed:"),
        ({"queue": {"max_waiting": -1}}, "queue.max_waiting: got -1, allowed:"),
        ({"queue": {"instance_s": 0}}, "queue.instance_s: got 0, allowed:"),
        ({"queue": {"patience": 1}}, "queue.patience: unknown key, did you mean patience_s?"),
        ({"slo": {"ttft_s": 0}}, "slo.ttft_s: got 0, allowed:"),
    ],
)
def test_what_is_wrong_is_named(values, said):
    with pytest.raises(ConfigError) as caught:
        parse_config({"scheduler": values})
    assert f"scheduler.{said}" in str(caught.value)
