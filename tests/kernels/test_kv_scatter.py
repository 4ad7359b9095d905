"""kv_scatter undoes kv_gather, drops padding, and copies no pages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.backend import Backend
from pallas_kernels.kv_gather.op import kv_gather
from pallas_kernels.kv_scatter.op import kv_scatter
from tests.helpers.packed import LAYERS, PAGES, make_packed, make_pages
from tests.helpers.paged import assert_no_race

# jax 0.10.2 widens all pages to write a few of them on CPU; 0.11 does not.
NARROW = pytest.param(
    "bfloat16", marks=pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="widened on CPU")
)
BLOCKS = [4, PAGES, 0, 3, PAGES + 9]  # two of them are padding


def scatter(pages, packed, blocks, **options):
    return kv_scatter(pages, packed, jnp.asarray(blocks, jnp.int32), **options)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.XLA])
@pytest.mark.parametrize("replication", [1, 2])
@pytest.mark.parametrize("layers", [None, (0, 1), (1, 3)])
def test_unpacks_blocks_into_layers(layers, replication, backend):
    start, stop = layers or (0, LAYERS)
    pages, packed = make_pages(replication=replication), make_packed(5, num_layers=stop - start)
    want = jax.tree.map(np.array, pages)
    for index, block in enumerate(BLOCKS):
        for layer in range(start, stop if block < PAGES else start):
            for side in range(2):
                heads = np.repeat(packed[index, layer - start, side], replication, axis=0)
                want[side][layer][block] = heads
    got = scatter(pages, packed, BLOCKS, replication=replication, layers=layers, backend=backend)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.XLA])
@pytest.mark.parametrize("replication", [1, 2])
def test_gather_reads_what_scatter_wrote(replication, backend):
    pages, packed = make_pages(replication=replication), make_packed(3)
    blocks = jnp.asarray([5, 2, 1], jnp.int32)
    pages = kv_scatter(pages, packed, blocks, replication=replication, backend=backend)
    got = kv_gather(pages, blocks, replication=replication, backend=backend)
    np.testing.assert_array_equal(got, packed)


@pytest.mark.parametrize(
    ("dtype", "replication", "layers"), [("float32", 1, None), ("bfloat16", 2, (1, 3))]
)
def test_kernel_matches_reference(dtype, replication, layers, capfd):
    pages = make_pages(replication=replication, dtype=dtype)
    packed = make_packed(5, num_layers=2 if layers else LAYERS, dtype=dtype)
    options = {"replication": replication, "layers": layers}
    want = scatter(pages, packed, BLOCKS, backend=Backend.REFERENCE, **options)
    got = scatter(pages, packed, BLOCKS, backend=Backend.INTERPRET, **options)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert_no_race(capfd)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.XLA, Backend.INTERPRET])
def test_no_blocks_change_nothing(backend):
    pages = make_pages()
    got = scatter(pages, make_packed(0), [], backend=backend)
    jax.tree.map(np.testing.assert_array_equal, got, pages)


@pytest.mark.parametrize("replication", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", NARROW])
def test_donated_pages_are_updated_in_place(dtype, replication):
    pages = make_pages(replication=replication, num_pages=500, dtype=dtype)
    arguments = pages, make_packed(5, dtype=dtype), jnp.asarray(BLOCKS, jnp.int32)
    op = jax.jit(functools.partial(kv_scatter, replication=replication), donate_argnums=0)
    memory = op.lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < pages.k[0].nbytes // 10
    assert memory.alias_size_in_bytes >= 2 * LAYERS * pages.k[0].nbytes


@pytest.mark.parametrize("replication", [1, 2])
def test_lowers_for_tpu_without_a_tpu(replication):
    pages = make_pages(replication=replication, dtype="bfloat16")
    op = functools.partial(kv_scatter, replication=replication, backend=Backend.PALLAS)
    packed = make_packed(len(BLOCKS), dtype="bfloat16")
    traced = jax.jit(op).trace(pages, packed, jnp.asarray(BLOCKS, jnp.int32))
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
