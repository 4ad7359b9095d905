"""Every backend of paged_attention agrees with its reference, the reference with numpy."""

import functools

import jax
import numpy as np
import pytest

from pallas_kernels.backend import Backend
from pallas_kernels.paged_attention import xla
from pallas_kernels.paged_attention.op import paged_attention
from tests.helpers.paged import (
    assert_close,
    assert_no_race,
    attend_densely,
    make_queries,
    make_rows,
    quantize_rows,
)

SCALE = 0.19
EDGES = [0, 1, 15, 16, 17, 130]  # padding, one, under, exactly, over a page, over a turn


def attend(q, rows, backend, **options):
    op = functools.partial(paged_attention, scale=SCALE, backend=backend, **options)
    return jax.jit(op)(q, *rows[:4])


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_reference_is_dense_attention(group, window):
    rows = make_rows(EDGES)
    q = make_queries(len(EDGES), 2 * group)
    got = attend(q, rows, Backend.REFERENCE, window=window)
    assert not got[0].any()
    for row, length in enumerate(EDGES[1:], start=1):
        query, (k, v) = np.asarray(q[row], np.float64), rows.dense[row]
        want = attend_densely(query, k, v, length - 1, scale=SCALE, window=window)
        assert_close(got[row], want)


@pytest.mark.parametrize("window", [None, 1, 20, 500])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_xla_matches_reference(dtype, window):
    rows = make_rows(EDGES, dtype=dtype)
    q = make_queries(len(EDGES), 4, dtype=dtype)
    got = attend(q, rows, Backend.XLA, window=window)
    assert_close(got, attend(q, rows, Backend.REFERENCE, window=window))


@pytest.mark.parametrize(
    ("kv_heads", "group", "page_size"), [(1, 1, 1), (3, 2, 8), (1, 4, 32), (3, 2, 32)]
)
def test_xla_takes_any_shape(kv_heads, group, page_size):
    rows = make_rows([33, 0, 7], kv_heads=kv_heads, head_dim=24, page_size=page_size)
    q = make_queries(3, kv_heads * group, head_dim=24)
    got = attend(q, rows, Backend.XLA)
    assert_close(got, attend(q, rows, Backend.REFERENCE))


def test_xla_loops_over_many_turns(monkeypatch):
    monkeypatch.setattr(xla, "TURN_TOKENS", 32)
    rows = make_rows([300, 5, 64])
    q = make_queries(3, 4)
    for window in (None, 100):
        got = attend(q, rows, Backend.XLA, window=window)
        assert_close(got, attend(q, rows, Backend.REFERENCE, window=window))


def attend_int8(q, rows, backend, **options):
    op = functools.partial(paged_attention, scale=SCALE, backend=backend, **options)
    return jax.jit(op)(q, *rows[:4], k_scales=rows.k_scales, v_scales=rows.v_scales)


def test_int8_pages_mean_numbers_times_scales():
    rows = quantize_rows(make_rows(EDGES))
    q = make_queries(len(EDGES), 4)
    plain = paged_attention(
        q, *rows.dequantized(), *rows[2:4], scale=SCALE, backend=Backend.REFERENCE
    )
    for backend in (Backend.REFERENCE, Backend.XLA):
        assert_close(attend_int8(q, rows, backend), plain)


def test_all_rows_padding_gives_zeros():
    rows = make_rows([0, 0])
    for backend in (Backend.REFERENCE, Backend.XLA):
        assert not attend(make_queries(2, 4), rows, backend).any()


@pytest.mark.parametrize(("dtype", "group", "window"), [("float32", 2, 20), ("bfloat16", 1, None)])
def test_kernel_matches_reference(dtype, group, window, capfd):
    rows = make_rows([0, 16, 17, 300], dtype=dtype)
    q = make_queries(4, 2 * group, dtype=dtype)
    got = attend(q, rows, Backend.INTERPRET, window=window)
    assert_close(got, attend(q, rows, Backend.REFERENCE, window=window))
    assert_no_race(capfd)


def test_kernel_prefetches_over_empty_rows_and_many_turns(capfd):
    rows = make_rows([300, 0, 0, 17, 520, 0])
    q = make_queries(6, 4)
    got = attend(q, rows, Backend.INTERPRET)
    assert_close(got, attend(q, rows, Backend.REFERENCE))
    assert_no_race(capfd)


@pytest.mark.parametrize(
    ("dtype", "window"),
    [pytest.param("float32", None, marks=pytest.mark.slow), ("bfloat16", 20)],
)
def test_kernel_reads_int8_pages(dtype, window, capfd):
    rows = quantize_rows(make_rows([0, 32, 33, 300], page_size=32))
    q = make_queries(4, 4, dtype=dtype)
    got = attend_int8(q, rows, Backend.INTERPRET, window=window)
    assert_close(got, attend_int8(q, rows, Backend.REFERENCE, window=window))
    assert_no_race(capfd)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("page_size", [16, 32])
@pytest.mark.parametrize("window", [None, 33])
def test_kernel_matches_reference_over_shapes(dtype, head_dim, page_size, window, capfd):
    rows = make_rows([31, 0, 600, 1], head_dim=head_dim, page_size=page_size, dtype=dtype)
    q = make_queries(4, 6, head_dim=head_dim, dtype=dtype)
    got = attend(q, rows, Backend.INTERPRET, window=window)
    assert_close(got, attend(q, rows, Backend.REFERENCE, window=window))
    assert_no_race(capfd)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("head_dim", "group"), [(64, 1), (128, 4)])
def test_lowers_for_tpu_without_a_tpu(dtype, head_dim, group):
    rows = make_rows([33, 7], head_dim=head_dim, dtype=dtype)
    q = make_queries(2, 2 * group, head_dim=head_dim, dtype=dtype)
    op = jax.jit(functools.partial(paged_attention, scale=SCALE, backend=Backend.PALLAS))
    lowered = op.trace(q, *rows[:4]).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()


def test_shapes_that_the_kernel_refuses():
    rows = make_rows([9], head_dim=24)
    with pytest.raises(ValueError, match="head dim 24; 64, 96, 128, 256 are taken"):
        attend(make_queries(1, 2, head_dim=24), rows, Backend.INTERPRET)
    rows = make_rows([9], page_size=8, dtype="bfloat16")
    with pytest.raises(ValueError, match="pages of 8 tokens; multiples of 16"):
        attend(make_queries(1, 2, dtype="bfloat16"), rows, Backend.PALLAS)
    with pytest.raises(ValueError, match="queries of float32 over pages of bfloat16"):
        attend(make_queries(1, 2), make_rows([9], dtype="bfloat16"), Backend.PALLAS)
    with pytest.raises(ValueError, match="3 query heads do not divide by 2 kv heads"):
        attend(make_queries(1, 3), make_rows([9]), None)
