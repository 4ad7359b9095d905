"""Attention by the GPU kernels: interpreted, and on a GPU, against the references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.backend import Backend
from pallas_kernels.int8 import quantize
from pallas_kernels.paged_attention import pallas_gpu as decode_kernel
from pallas_kernels.paged_attention.op import paged_attention
from pallas_kernels.ragged_paged_attention import pallas_gpu as prefill_kernel
from pallas_kernels.ragged_paged_attention.op import ragged_paged_attention
from pallas_kernels.tiles import DecodeTile, PrefillTile
from tests.helpers.gpu import IGNORE_DEPRECATION, MOSAIC_GPU, TRITON, need_gpu_for
from tests.helpers.paged import assert_close, assert_no_race, make_queries, make_rows

pytestmark = pytest.mark.filterwarnings(IGNORE_DEPRECATION)

SCALE = 0.19
EDGES = [0, 1, 15, 16, 17, 130]  # padding, one, under, exactly, over a page, over a turn
# Contexts and how many of their last tokens are new; 5 tokens of padding follow.
MIXED = [(0, 0), (1, 1), (150, 1), (17, 17), (0, 0), (80, 48), (97, 33), (60, 2)]
PADDING = 5
NUM_TOKENS = sum(new for _, new in MIXED) + PADDING


@pytest.fixture(autouse=True)
def _whole_float32_products():
    """A GPU multiplies float32 matrices in TF32 otherwise, in the references too."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(autouse=True)
def _where_a_gpu_is(request):
    need_gpu_for(request.node)


def decode(rows, q, *, like=paged_attention, **options):
    run = functools.partial(like, scale=SCALE, **options)
    return jax.jit(run)(q, *rows[:4])


def prefill(rows, q, *, batch=MIXED, like=ragged_paged_attention, **options):
    starts = jnp.asarray(np.cumsum([0] + [new for _, new in batch]), jnp.int32)
    run = functools.partial(like, scale=SCALE, **options)
    return jax.jit(run)(q, *rows[:3], starts, rows[3])


def contexts(batch):
    return [context for context, _ in batch]


def as_int8(rows):
    """Returns the rows with int8 pages, and the scales as an op takes them."""
    (k, k_scales), (v, v_scales) = quantize(rows.k_pages), quantize(rows.v_pages)
    return rows._replace(k_pages=k, v_pages=v), {"k_scales": k_scales, "v_scales": v_scales}


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize(
    ("dtype", "head_dim", "group", "window"),
    [("float32", 64, 2, 20), ("bfloat16", 128, 4, None), ("float32", 96, 3, None)],
)
def test_decode_matches_reference(dtype, head_dim, group, window, backend):
    rows = make_rows(EDGES, head_dim=head_dim, dtype=dtype)
    q = make_queries(len(EDGES), 2 * group, head_dim=head_dim, dtype=dtype)
    got = decode(rows, q, window=window, backend=backend)
    want = decode(rows, q, window=window, backend=Backend.REFERENCE)
    assert_close(got, want)


@pytest.mark.parametrize("backend", MOSAIC_GPU)
@pytest.mark.parametrize(("head_dim", "group", "page_size"), [(64, 1, 32), (128, 4, 16)])
def test_mosaic_decode_matches_reference(head_dim, group, page_size, backend):
    options = {"head_dim": head_dim, "dtype": "bfloat16"}
    rows = make_rows(EDGES, page_size=page_size, **options)
    q = make_queries(len(EDGES), 2 * group, **options)
    got = decode(rows, q, backend=backend)
    assert_close(got, decode(rows, q, backend=Backend.REFERENCE))


@pytest.mark.parametrize("backend", MOSAIC_GPU)
@pytest.mark.parametrize(
    ("head_dim", "group", "page_size", "batch"),
    [
        (128, 4, 16, [(0, 0), (150, 1), (70, 37)]),
        pytest.param(64, 1, 32, MIXED, marks=pytest.mark.slow),
        pytest.param(64, 7, 64, [(90, 70), (0, 0), (64, 64), (1, 1)], marks=pytest.mark.slow),
    ],
)
def test_mosaic_prefill_matches_reference(head_dim, group, page_size, batch, backend, capfd):
    options = {"head_dim": head_dim, "dtype": "bfloat16"}
    rows = make_rows(contexts(batch), page_size=page_size, **options)
    num_tokens = sum(new for _, new in batch) + PADDING
    q = make_queries(num_tokens, 2 * group, **options)
    got = prefill(rows, q, batch=batch, backend=backend)
    assert_close(got, prefill(rows, q, batch=batch, backend=Backend.REFERENCE))
    assert not got[-PADDING:].any()
    assert_no_race(capfd)


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize(("splits", "window"), [(2, None), (8, None), (4, 40)])
def test_parts_of_a_context_are_put_together(splits, window, backend):
    rows, q = make_rows([*EDGES, 0, 400]), make_queries(len(EDGES) + 2, 4)
    got = decode(
        rows,
        q,
        like=decode_kernel.paged_attention,
        window=window,
        tile=DecodeTile(turn_tokens=32, splits=splits, num_warps=4, num_stages=3),
        interpret=backend is Backend.INTERPRET_TRITON,
    )
    assert_close(got, decode(rows, q, window=window, backend=Backend.REFERENCE))


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize(("kv_heads", "group", "page_size"), [(1, 1, 1), (3, 17, 24)])
def test_decode_takes_any_page_size_and_group(kv_heads, group, page_size, backend):
    rows = make_rows([33, 0, 7], kv_heads=kv_heads, head_dim=40, page_size=page_size)
    q = make_queries(3, kv_heads * group, head_dim=40)
    got = decode(rows, q, backend=backend)
    assert_close(got, decode(rows, q, backend=Backend.REFERENCE))


@pytest.mark.parametrize("backend", TRITON)
def test_int8_pages(backend):
    rows, scales = as_int8(make_rows(EDGES))
    q = make_queries(len(EDGES), 4)
    got = decode(rows, q, backend=backend, **scales)
    assert_close(got, decode(rows, q, backend=Backend.REFERENCE, **scales))
    rows, scales = as_int8(make_rows(contexts(MIXED)))
    q = make_queries(NUM_TOKENS, 4)
    got = prefill(rows, q, backend=backend, **scales)
    assert_close(got, prefill(rows, q, backend=Backend.REFERENCE, **scales))


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize(
    ("dtype", "head_dim", "group", "window"),
    [("float32", 64, 2, 20), ("bfloat16", 128, 4, None), ("float32", 96, 3, None)],
)
def test_prefill_matches_reference(dtype, head_dim, group, window, backend):
    rows = make_rows(contexts(MIXED), head_dim=head_dim, dtype=dtype)
    q = make_queries(NUM_TOKENS, 2 * group, head_dim=head_dim, dtype=dtype)
    got = prefill(rows, q, window=window, backend=backend)
    want = prefill(rows, q, window=window, backend=Backend.REFERENCE)
    assert_close(got, want)
    assert not got[-PADDING:].any()


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize("batch", [[(0, 0), (0, 0)], [(9, 1), (40, 1)], [(90, 64)], [(1, 1)]])
def test_prefill_at_the_edges_of_a_batch(batch, backend):
    """Tiles of 16 queries: many of them, and rows that end with one."""
    rows = make_rows(contexts(batch))
    q = make_queries(max(1, sum(new for _, new in batch)), 4)
    got = prefill(
        rows,
        q,
        batch=batch,
        like=prefill_kernel.ragged_paged_attention,
        window=50,
        tile=PrefillTile(queries=32, turn_tokens=16, num_warps=4, num_stages=3),
        interpret=backend is Backend.INTERPRET_TRITON,
    )
    want = prefill(rows, q, batch=batch, window=50, backend=Backend.REFERENCE)
    assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("window", [None, 33])
def test_over_shapes(dtype, head_dim, window, backend):
    options = {"head_dim": head_dim, "dtype": dtype}
    rows, q = make_rows([31, 0, 600, 1], page_size=32, **options), make_queries(4, 14, **options)
    got = decode(rows, q, window=window, backend=backend)
    assert_close(got, decode(rows, q, window=window, backend=Backend.REFERENCE))
    rows, q = make_rows(contexts(MIXED), **options), make_queries(NUM_TOKENS, 14, **options)
    got = prefill(rows, q, window=window, backend=backend)
    assert_close(got, prefill(rows, q, window=window, backend=Backend.REFERENCE))


def test_shapes_that_the_kernels_refuse():
    rows = make_rows([9], head_dim=8)
    with pytest.raises(ValueError, match="head dim 8; 16 to 256 are taken"):
        decode(rows, make_queries(1, 2, head_dim=8), backend=Backend.INTERPRET_TRITON)
    rows = make_rows([9], dtype="bfloat16")
    with pytest.raises(ValueError, match="queries of float32 over pages of bfloat16"):
        decode(rows, make_queries(1, 2), backend=Backend.INTERPRET_TRITON)
    rows = make_rows([9], kv_heads=1)
    with pytest.raises(ValueError, match="129 query heads a kv head; at most 128"):
        decode(rows, make_queries(1, 129), backend=Backend.INTERPRET_TRITON)
