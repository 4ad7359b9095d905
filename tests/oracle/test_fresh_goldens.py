"""Goldens made afresh, of other sizes and weights, are met as well. Needs `.venv-oracle`."""

import pathlib
import subprocess

import jax
import numpy as np
import pytest

from memserve_jax.model.loader import load_model
from memserve_jax.parallel.mesh import make_mesh
from tests.helpers.goldens import NAMES, load_golden
from tests.helpers.paged_runner import PagedRunner

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = ROOT / ".venv-oracle" / "bin" / "python"
TOLERANCE = 2e-3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-oracle with the extra `oracle`")
@pytest.mark.parametrize("name", NAMES)
def test_fresh_goldens_are_met(name, tmp_path):
    command = [PYTHON, "tests/oracle/make_goldens.py", tmp_path, name]
    made = subprocess.run(
        [*command, "--seed", "5000", "--scale-up"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    golden = load_golden(name, folder=tmp_path)
    bundle = load_model(golden.path, mesh=make_mesh(jax.devices()[:1], 1), dtype="float32")
    answers = PagedRunner(bundle).greedy(golden.prompts, 24)
    assert answers.tokens == golden.tokens
    assert np.abs(answers.logits - golden.logits).max() <= TOLERANCE
