"""Every backend of ragged_paged_attention agrees with its reference, the reference with numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.backend import Backend
from pallas_kernels.ragged_paged_attention import xla
from pallas_kernels.ragged_paged_attention.op import ragged_paged_attention
from tests.helpers.paged import (
    assert_close,
    assert_no_race,
    attend_densely,
    make_queries,
    make_rows,
    quantize_rows,
)

SCALE = 0.19
PADDING = 5  # tokens
# Contexts and how many of their last tokens are new: padding rows, single tokens, whole prompts
# around a page, chunks that start at, before and behind the edge of a page.
MIXED = [
    (0, 0),
    (1, 1),
    (300, 1),
    (16, 16),
    (17, 17),
    (15, 15),
    (0, 0),
    (80, 48),
    (97, 33),
    (60, 2),
]


def starts(rows):
    return jnp.asarray(np.cumsum([0] + [new for _, new in rows]), jnp.int32)


def make(rows, *, group=2, dtype="float32", **shape):
    paged = make_rows([context for context, _ in rows], dtype=dtype, **shape)
    num_tokens = sum(new for _, new in rows) + PADDING
    num_heads = paged.k_pages.shape[1] * group
    q = make_queries(num_tokens, num_heads, head_dim=paged.k_pages.shape[3], dtype=dtype)
    return q, paged


def attend(q, paged, rows, backend, **options):
    op = functools.partial(ragged_paged_attention, scale=SCALE, backend=backend, **options)
    return jax.jit(op)(q, *paged[:3], starts(rows), paged[3])


@pytest.mark.parametrize(("group", "window"), [(1, None), (4, 1), (4, 20)])
def test_reference_is_dense_causal_attention(group, window):
    q, paged = make(MIXED, group=group)
    got = attend(q, paged, MIXED, Backend.REFERENCE, window=window)
    token = 0
    for (context, new), (k, v) in zip(MIXED, paged.dense, strict=True):
        for position in range(context - new, context):
            query = np.asarray(q[token], np.float64)
            want = attend_densely(query, k, v, position, scale=SCALE, window=window)
            assert_close(got[token], want)
            token += 1
    assert not got[token:].any()


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_xla_matches_reference(dtype, window):
    q, paged = make(MIXED, dtype=dtype)
    got = attend(q, paged, MIXED, Backend.XLA, window=window)
    assert_close(got, attend(q, paged, MIXED, Backend.REFERENCE, window=window))
    assert not got[-PADDING:].any()


@pytest.mark.parametrize(("group", "window"), [(1, None), (4, 40)])
def test_xla_with_many_tiles_and_turns(monkeypatch, group, window):
    monkeypatch.setattr(xla, "TILE_TOKENS", 16)
    monkeypatch.setattr(xla, "TURN_TOKENS", 32)
    rows = [(3, 2), (200, 50), (16, 16), (0, 0), (90, 33)]
    q, paged = make(rows, group=group)
    got = attend(q, paged, rows, Backend.XLA, window=window)
    assert_close(got, attend(q, paged, rows, Backend.REFERENCE, window=window))


@pytest.mark.parametrize("rows", [[(0, 0), (0, 0)], [(9, 1), (40, 1)], [(40, 40)], [(1, 1)]])
def test_xla_at_the_edges_of_a_batch(rows):
    q, paged = make(rows, page_size=8, head_dim=24)
    got = attend(q, paged, rows, Backend.XLA)
    assert_close(got, attend(q, paged, rows, Backend.REFERENCE))


@pytest.mark.parametrize(("dtype", "group", "window"), [("float32", 2, None), ("bfloat16", 1, 20)])
def test_kernel_matches_reference(dtype, group, window, capfd):
    rows = [(0, 0), (17, 1), (300, 40)]
    q, paged = make(rows, group=group, dtype=dtype)
    got = attend(q, paged, rows, Backend.INTERPRET, window=window)
    assert_close(got, attend(q, paged, rows, Backend.REFERENCE, window=window))
    assert_no_race(capfd)


@pytest.mark.parametrize("backend", [Backend.XLA, Backend.INTERPRET])
def test_reads_int8_pages(backend, capfd):
    rows = [(0, 0), (33, 1), (300, 40)]
    q, paged = make(rows, page_size=32)
    paged = quantize_rows(paged)
    scales = {"k_scales": paged.k_scales, "v_scales": paged.v_scales}
    got = attend(q, paged, rows, backend, window=40, **scales)
    assert_close(got, attend(q, paged, rows, Backend.REFERENCE, window=40, **scales))
    assert_no_race(capfd)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize("rows", [MIXED, [(0, 0), (0, 0)], [(700, 100)]])
def test_kernel_matches_reference_over_shapes(dtype, head_dim, window, rows, capfd):
    q, paged = make(rows, head_dim=head_dim, dtype=dtype)
    got = attend(q, paged, rows, Backend.INTERPRET, window=window)
    assert_close(got, attend(q, paged, rows, Backend.REFERENCE, window=window))
    assert_no_race(capfd)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("head_dim", "group"), [(64, 1), (128, 4)])
def test_lowers_for_tpu_without_a_tpu(dtype, head_dim, group):
    rows = [(33, 20), (7, 1)]
    q, paged = make(rows, group=group, head_dim=head_dim, dtype=dtype)
    op = jax.jit(functools.partial(ragged_paged_attention, scale=SCALE, backend=Backend.PALLAS))
    traced = op.trace(q, *paged[:3], starts(rows), paged[3])
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_shapes_that_the_kernel_refuses():
    q, paged = make([(9, 9)], head_dim=24)
    with pytest.raises(ValueError, match="head dim 24"):
        attend(q, paged, [(9, 9)], Backend.INTERPRET)
