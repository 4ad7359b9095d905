"""Whole tensor-parallel steps of an 8B model, as serving runs them, for four H200s."""

import math

import pytest

from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import fallbacks
from tests.helpers.aot import REPORT
from tests.helpers.aot_gpu import compile_for_gpu, gpu_mesh
from tests.helpers.aot_model import AbstractEngine, read_shape
from tests.helpers.gpu import IGNORE_DEPRECATION

pytestmark = pytest.mark.filterwarnings(IGNORE_DEPRECATION)

TP, NUM_BLOCKS, NUM_ROWS, CHUNK_TOKENS, NUM_LAYERS = 4, 4096, 32, 512, 2
KERNELS_A_LAYER = 2  # append and attention
HBM_BYTES = 141e9  # of an H200


@pytest.mark.parametrize("step", ["decode", "mixed"])
def test_step(step):
    mesh = gpu_mesh(TP)
    config = read_shape("llama3-8b", num_hidden_layers=NUM_LAYERS)
    engine = AbstractEngine(
        config, mesh, num_blocks=NUM_BLOCKS, num_rows=NUM_ROWS, kernels=Backend.PALLAS
    )
    function, arguments = engine.decode() if step == "decode" else engine.mixed(CHUNK_TOKENS)
    compiled = compile_for_gpu(mesh, function, *arguments)
    cell = (
        f"{NUM_LAYERS} layers: HBM {compiled.hbm_bytes / 1e9:.2f} GB, of it "
        f"{compiled.temp_bytes / 1e9:.2f} scratch, {compiled.alias_bytes / 1e9:.2f} in place; "
        f"{compiled.num_triton} Triton kernels"
    )
    REPORT.add("Llama-3-8B step, TP4, per device", step, "sm_90 (H200)", cell)
    page = engine.pages.k[0]
    local_shape = page.sharding.shard_shape(page.shape)
    page_bytes = math.prod(local_shape) * page.dtype.itemsize
    assert compiled.num_triton == KERNELS_A_LAYER * NUM_LAYERS
    assert compiled.alias_bytes >= 2 * NUM_LAYERS * page_bytes
    assert compiled.copies_of(local_shape) == 0
    assert compiled.hbm_bytes < HBM_BYTES
    assert "all-reduce" in compiled.text
    assert not fallbacks()
