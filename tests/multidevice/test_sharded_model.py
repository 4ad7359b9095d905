"""A model split over 2 or 4 devices answers as on one, which is as `transformers` does."""

import jax
import numpy as np
import pytest

from memserve_jax.model.loader import load_model
from memserve_jax.parallel.mesh import make_mesh
from tests.helpers.goldens import load_golden
from tests.helpers.paged_runner import PagedRunner

STEPS = 9
TOLERANCE = 2e-3  # on logits, float32
IN_MAKE_TEST = {  # the others run in `make test-all`
    ("llama2", 4),  # 4 KV heads
    ("llama3", 4),  # 2 KV heads, each stored twice
    ("llama_linear", 2),  # biases everywhere
    ("mistral", 2),
    ("qwen2", 4),  # biases of replicated heads
    ("qwen3", 2),
}
CASES = [
    pytest.param(name, tp, marks=() if (name, tp) in IN_MAKE_TEST else pytest.mark.slow)
    for name in ("llama2", "llama3", "llama_linear", "llama_yarn", "mistral", "qwen2", "qwen3")
    for tp in (2, 4)
]


@pytest.mark.parametrize(("name", "tp"), CASES)
def test_sharded_equals_unsharded(name, tp):
    golden = load_golden(name)
    mesh = make_mesh(jax.devices()[1 : 1 + tp], tp)
    bundle = load_model(golden.path, mesh=mesh, dtype="float32")
    assert bundle.params["layers.0.attention.wq"].sharding.num_devices == tp
    answers = PagedRunner(bundle).greedy(golden.prompts, STEPS)
    assert answers.tokens == [tokens[:STEPS] for tokens in golden.tokens]
    held = [step for step in golden.logit_steps if step < STEPS]
    expected = golden.logits[:, : len(held)]
    assert np.abs(answers.logits[:, held] - expected).max() <= TOLERANCE
