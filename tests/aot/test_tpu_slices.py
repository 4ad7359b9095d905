"""KV from one slice to another: gathered, sent over the data-centre network, scattered."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.parallel.mesh import MODEL_AXIS
from pallas_kernels.backend import Backend
from pallas_kernels.kv_gather.op import kv_gather
from pallas_kernels.kv_scatter.op import kv_scatter
from pallas_kernels.pages import KVPages
from tests.helpers.aot import ONE_IN_EVERY_RUN, REPORT, SLICE_AXIS, array, compile_for, slices_mesh

LAYOUT = KVLayout(
    num_layers=32, num_kv_heads=8, block_size_tokens=16, head_dim=128, dtype="bfloat16"
)
NUM_BLOCKS, MOVED_BLOCKS = 2048, 64
PAGES = PartitionSpec(SLICE_AXIS, MODEL_AXIS)  # M K S H; each slice has its own blocks
BLOCKS = PartitionSpec(SLICE_AXIS)


def send(pages, sources, targets):
    """Moves blocks of slice 0 into slice 1; each slice has its line of `sources` and `targets`."""
    packed = kv_gather(pages, sources, backend=Backend.PALLAS)
    packed = jax.lax.ppermute(packed, SLICE_AXIS, [(0, 1)])
    return kv_scatter(pages, packed, targets, backend=Backend.PALLAS)


@pytest.mark.parametrize("generation", ONE_IN_EVERY_RUN)
def test_transfer(generation):
    mesh = slices_mesh(generation)
    shape = LAYOUT.page_shape(2 * NUM_BLOCKS, tp=4)
    page = array(mesh, shape, jnp.bfloat16, *PAGES)
    pages = KVPages((page,) * LAYOUT.num_layers, (page,) * LAYOUT.num_layers)
    blocks = array(mesh, (2 * MOVED_BLOCKS,), jnp.int32, *BLOCKS)
    local = functools.partial(jax.shard_map, mesh=mesh, out_specs=PAGES, check_vma=False)
    transfer = jax.jit(local(send, in_specs=(PAGES, BLOCKS, BLOCKS)), donate_argnums=0)
    compiled = compile_for(mesh, transfer, pages, blocks, blocks)

    local_shape = page.sharding.shard_shape(shape)
    moved_bytes = LAYOUT.block_bytes * MOVED_BLOCKS
    REPORT.add(
        f"KV of {MOVED_BLOCKS} blocks ({moved_bytes / 1e6:.0f} MB) from slice to slice, per device",
        "gather, send, scatter",
        generation.name,
        f"{compiled.alias_bytes / 1e9:.2f} GB in place, {compiled.temp_bytes / 1e6:.1f} MB scratch",
    )
    page_bytes = math.prod(local_shape) * 2
    assert compiled.alias_bytes >= 2 * LAYOUT.num_layers * page_bytes
    assert compiled.copies_of(local_shape) == 0
    assert compiled.num_kernels == 2
    assert "is_host_transfer=true" in compiled.text  # between slices: through the hosts
    assert compiled.temp_bytes < 4 * moved_bytes
