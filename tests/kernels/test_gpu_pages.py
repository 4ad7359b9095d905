"""Append, gather and scatter by the GPU kernels: interpreted, and on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.backend import Backend
from pallas_kernels.kv_append.op import kv_append
from pallas_kernels.kv_gather import mosaic_gpu as gather_kernel
from pallas_kernels.kv_gather.op import kv_gather
from pallas_kernels.kv_scatter.op import kv_scatter
from tests.helpers.gpu import IGNORE_DEPRECATION, MOSAIC_GPU, TRITON, need_gpu_for
from tests.helpers.packed import LAYERS, PAGES, make_packed, make_pages
from tests.helpers.paged import assert_no_race

pytestmark = pytest.mark.filterwarnings(IGNORE_DEPRECATION)

GATHERED = [4, 0, 3, PAGES]  # the last is padding
SCATTERED = [4, PAGES, 0, 3, PAGES + 9]  # two of them are padding
SHAPES = [("float32", 1, None), ("bfloat16", 2, (1, 3))]  # dtype, replication, layers


@pytest.fixture(autouse=True)
def _where_a_gpu_is(request):
    need_gpu_for(request.node)


def append_inputs(head_dim, dtype):
    """Returns pages of 16 tokens of 3 heads, and 9 tokens for them, some of them padding."""
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    end = PAGES * 16
    slots = [end, 14, 15, 16, 17, end, 5 * 16, 3 * 16 + 9, end + 3]
    pages = [array(PAGES, 3, 16, head_dim) for _ in range(2)]
    new = [array(len(slots), 3, head_dim) for _ in range(2)]
    return *pages, *new, jnp.asarray(slots, jnp.int32)


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize(("dtype", "head_dim"), [("float32", 64), ("bfloat16", 96)])
def test_append_matches_reference(dtype, head_dim, backend):
    inputs = append_inputs(head_dim, dtype)
    got = kv_append(*inputs, backend=backend)
    jax.tree.map(np.testing.assert_array_equal, got, kv_append(*inputs, backend=Backend.REFERENCE))


@pytest.mark.parametrize("backend", TRITON)
def test_append_to_int8_pages(backend):
    _, _, k, v, slots = append_inputs(64, "float32")
    pages, scales = jnp.ones((PAGES, 3, 16, 64), jnp.int8), jnp.full((PAGES, 3, 16), 0.5)
    options = {"k_scales": scales, "v_scales": scales}
    got = kv_append(pages, pages, k, v, slots, backend=backend, **options)
    want = kv_append(pages, pages, k, v, slots, backend=Backend.REFERENCE, **options)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("backend", TRITON + MOSAIC_GPU)
@pytest.mark.parametrize(("dtype", "replication", "layers"), SHAPES)
def test_gather_matches_reference(dtype, replication, layers, backend, capfd):
    pages, blocks = make_pages(replication=replication, dtype=dtype), jnp.asarray(GATHERED)
    options = {"replication": replication, "layers": layers}
    got = kv_gather(pages, blocks, backend=backend, **options)
    want = kv_gather(pages, blocks, backend=Backend.REFERENCE, **options)
    np.testing.assert_array_equal(got, want)
    assert_no_race(capfd)


@pytest.mark.parametrize("backend", TRITON + MOSAIC_GPU)
@pytest.mark.parametrize(("dtype", "replication", "layers"), SHAPES)
def test_scatter_matches_reference(dtype, replication, layers, backend, capfd):
    pages = make_pages(replication=replication, dtype=dtype)
    packed = make_packed(5, num_layers=2 if layers else LAYERS, dtype=dtype)
    blocks, options = jnp.asarray(SCATTERED), {"replication": replication, "layers": layers}
    got = kv_scatter(pages, packed, blocks, backend=backend, **options)
    want = kv_scatter(pages, packed, blocks, backend=Backend.REFERENCE, **options)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert_no_race(capfd)


@pytest.mark.parametrize("backend", TRITON + MOSAIC_GPU)
def test_no_blocks(backend):
    pages, none = make_pages(), jnp.zeros(0, jnp.int32)
    assert kv_gather(pages, none, backend=backend).shape[:3] == (0, LAYERS, 2)
    got = kv_scatter(pages, make_packed(0), none, backend=backend)
    jax.tree.map(np.testing.assert_array_equal, got, pages)


def test_a_page_too_large_for_one_copy_is_taken_in_pieces(monkeypatch):
    pages = make_pages()
    monkeypatch.setattr(gather_kernel.tma_ring, "PIECE_BYTES", 4096)  # of one head
    assert gather_kernel.tma_ring.piece_heads(pages.k[0], 1) == 1
    backend = MOSAIC_GPU[0].values[0]
    if not hasattr(jax.experimental.pallas.mosaic_gpu, "InterpretGPUParams"):
        pytest.skip("jax 0.10 has no public interpreter")
    blocks = jnp.asarray(GATHERED)
    got = kv_gather(pages, blocks, backend=backend)
    np.testing.assert_array_equal(got, kv_gather(pages, blocks, backend=Backend.REFERENCE))


def test_pages_that_the_copy_engine_refuses():
    backend = MOSAIC_GPU[0].values[0]
    narrow = jax.tree.map(lambda pages: pages[..., :3], make_pages())
    with pytest.raises(ValueError, match="rows of 12 bytes; multiples of 16 are taken"):
        kv_gather(narrow, jnp.asarray(GATHERED), backend=backend)
