"""kv_gather packs pages of any layers, each true head once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.backend import Backend
from pallas_kernels.kv_gather.op import kv_gather
from tests.helpers.packed import LAYERS, PAGES, make_pages
from tests.helpers.paged import assert_no_race

BLOCKS = [4, 0, 3, PAGES]  # the last is padding


def gather(pages, blocks, **options):
    return kv_gather(pages, jnp.asarray(blocks, jnp.int32), **options)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.XLA])
@pytest.mark.parametrize("replication", [1, 2])
@pytest.mark.parametrize("layers", [None, (0, 1), (1, 3)])
def test_packs_blocks_of_layers(layers, replication, backend):
    pages = make_pages(replication=replication)
    got = gather(pages, BLOCKS, replication=replication, layers=layers, backend=backend)
    start, stop = layers or (0, LAYERS)
    for index, block in enumerate(BLOCKS[:-1]):
        for layer in range(start, stop):
            for side in range(2):
                want = pages[side][layer][block, ::replication]
                np.testing.assert_array_equal(got[index, layer - start, side], want)


@pytest.mark.parametrize(
    ("dtype", "replication", "layers"), [("float32", 1, None), ("bfloat16", 2, (1, 3))]
)
def test_kernel_matches_reference(dtype, replication, layers, capfd):
    pages = make_pages(replication=replication, dtype=dtype)
    options = {"replication": replication, "layers": layers}
    want = gather(pages, BLOCKS, backend=Backend.REFERENCE, **options)
    got = gather(pages, BLOCKS, backend=Backend.INTERPRET, **options)
    np.testing.assert_array_equal(got, want)
    assert_no_race(capfd)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.XLA, Backend.INTERPRET])
def test_no_blocks_are_an_empty_array(backend):
    assert gather(make_pages(), [], backend=backend).shape[:3] == (0, LAYERS, 2)


@pytest.mark.parametrize("replication", [1, 2])
def test_lowers_for_tpu_without_a_tpu(replication):
    pages = make_pages(replication=replication, dtype="bfloat16")
    op = functools.partial(kv_gather, replication=replication, backend=Backend.PALLAS)
    traced = jax.jit(op).trace(pages, jnp.asarray(BLOCKS, jnp.int32))
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_what_does_not_fit_the_pages():
    with pytest.raises(ValueError, match="2 stored heads do not divide by replication 4"):
        gather(make_pages(), BLOCKS, replication=4)
    with pytest.raises(ValueError, match="layers 1:4 of 3"):
        gather(make_pages(), BLOCKS, layers=(1, 4))
