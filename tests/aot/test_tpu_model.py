"""Whole tensor-parallel steps of an 8B model, as serving runs them, for every TPU generation."""

import math

import pytest

from pallas_kernels.backend import Backend
from tests.helpers.aot import ONE_IN_EVERY_RUN, REPORT, V5E, compile_for, host_mesh, tpu_limits
from tests.helpers.aot_model import AbstractEngine, read_shape

TP, NUM_BLOCKS, NUM_ROWS, CHUNK_TOKENS = 4, 4096, 32, 512
# All layers and the whole vocabulary where a device is smallest. Elsewhere fewer, to save minutes:
# sorting a vocabulary in the sampler takes the compiler longest.
SMALLER = {"num_hidden_layers": 2, "vocab_size": 16_384}
KERNELS_A_LAYER = 2  # append and attention


def compile_step(generation, step, config):
    """Returns what the compiler says of a step, having checked what must hold of any."""
    mesh = host_mesh(generation)
    engine = AbstractEngine(
        config, mesh, num_blocks=NUM_BLOCKS, num_rows=NUM_ROWS, kernels=Backend.PALLAS
    )
    function, arguments = engine.decode() if step == "decode" else engine.mixed(CHUNK_TOKENS)
    compiled = compile_for(mesh, function, *arguments)
    limits = tpu_limits(mesh)
    page = engine.pages.k[0]
    local_shape = page.sharding.shard_shape(page.shape)
    page_bytes = math.prod(local_shape) * page.dtype.itemsize
    assert compiled.alias_bytes >= 2 * config.num_layers * page_bytes
    assert compiled.copies_of(local_shape) == 0
    assert compiled.hbm_bytes < limits.hbm_capacity_bytes
    assert compiled.vmem_bytes < limits.vmem_capacity_bytes
    assert compiled.num_kernels == KERNELS_A_LAYER * config.num_layers
    assert "all-reduce" in compiled.text
    return compiled


@pytest.mark.parametrize("step", ["decode", "mixed"])
@pytest.mark.parametrize("generation", ONE_IN_EVERY_RUN)
def test_step(generation, step):
    config = read_shape("llama3-8b", **({} if generation is V5E else SMALLER))
    compiled = compile_step(generation, step, config)
    limits = tpu_limits(host_mesh(generation))
    cell = (
        f"{config.num_layers} layers, {config.vocab_size} tokens: "
        f"HBM {compiled.hbm_bytes / 1e9:.2f} of {limits.hbm_capacity_bytes / 1e9:.1f} GB, "
        f"of it {compiled.temp_bytes / 1e9:.2f} scratch, {compiled.alias_bytes / 1e9:.2f} aliased; "
        f"VMEM {compiled.vmem_bytes / 2**20:.2f} MiB; "
        f"kernels move {compiled.kernel_bytes / 1e9:.1f} GB, {compiled.kernel_seconds * 1e3:.1f} ms"
    )
    REPORT.add("Llama-3-8B step, TP4, per device", step, generation.name, cell)
    assert compiled.temp_bytes < 300e6  # less than any gathered weight matrix of V rows


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 96])
def test_step_of_narrow_heads(head_dim):
    compile_step(V5E, "mixed", read_shape("llama3-8b", head_dim=head_dim, **SMALLER))
