import json

import jax
import pytest

from memserve_jax.bench.model import ModelBenchOptions, prefill_flops, run
from memserve_jax.bench.random_model import random_bundle
from memserve_jax.model.config import parse_model_config
from memserve_jax.parallel.mesh import make_mesh
from tests.unit.memserve_jax.bench.test_random_model import TINY

SMALL = ModelBenchOptions(
    prefills=(20,), batches=(1, 3), context=17, num_steps=4, num_rounds=3, block_size_tokens=8
)


class SlowPeer:
    """Takes ten seconds for everything."""

    name, version = "snail", "snail 1.0"

    def __init__(self):
        self.asked = []

    def prefill_s(self, num_tokens):
        self.asked.append(("prefill", num_tokens))
        return 10.0

    def decode_s(self, batch, context, num_steps):
        self.asked.append(("decode", batch, context, num_steps))
        return 10.0


@pytest.fixture(scope="module")
def bundle():
    config = parse_model_config(TINY)
    return random_bundle(config, mesh=make_mesh(jax.devices()[:1], 1), dtype="float32")


def test_every_case_is_measured_beside_bounds_and_peers(bundle):
    peer, told = SlowPeer(), []
    report = run(
        bundle,
        SMALL,
        shape="tiny",
        peers=[peer],
        progress=lambda done, total, what: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [(case.what, case.size) for case in report.cases] == [
        ("prefill", 20), ("decode", 1), ("decode", 3),
    ]  # fmt: skip
    assert peer.asked == [("prefill", 20), ("decode", 1, 17, 4), ("decode", 3, 17, 4)] * 3
    for case in report.cases:
        assert case.seconds > 0
        assert case.bound_s > 0
        assert case.times_peer["snail"] == pytest.approx(case.seconds / 10, rel=1e-6)
    mapping = json.loads(json.dumps(report.to_mapping()))
    assert mapping["peers"] == {"snail": "snail 1.0"}
    assert mapping["num_parameters"] == sum(w.size for w in bundle.params.values())


def test_flops_are_those_of_the_matrices(bundle):
    layer = 32 * (32 + 2 * 16 + 32) + 3 * 32 * 48  # q, k and v, o; gate, up, down
    norms = (2 * 2 + 1) * 32
    token = 2 * layer + norms
    pairs = 7 * 8 / 2
    expected = 2 * (7 * token + 96 * 32) + 4 * 2 * 32 * pairs
    assert prefill_flops(bundle.config, bundle.params, 7) == pytest.approx(expected)
