"""kv_append writes each token where its slot says, drops padding, and copies no pages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.backend import Backend
from pallas_kernels.kv_append import pallas_tpu
from pallas_kernels.kv_append.op import kv_append
from tests.helpers.paged import assert_no_race

PAGES, KV_HEADS, PAGE_SIZE, HEAD_DIM = 6, 2, 16, 64
PADDING = PAGES * PAGE_SIZE
BATCHES = [
    [PADDING, 14, 15, 16, 17, PADDING, 5 * 16, 3 * 16 + 9, PADDING + 3],  # two rows and padding
    [PADDING, PADDING],
    list(range(2 * 16, 3 * 16)),  # exactly a page
]


def make_inputs(slots, *, pages=PAGES, dtype="float32"):
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    page_shape, new_shape = (pages, KV_HEADS, PAGE_SIZE, HEAD_DIM), (len(slots), KV_HEADS, HEAD_DIM)
    new = array(*new_shape), array(*new_shape)
    return array(*page_shape), array(*page_shape), *new, jnp.asarray(slots, jnp.int32)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.XLA])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("slots", BATCHES)
def test_writes_only_the_named_slots(slots, dtype, backend):
    k_pages, v_pages, k, v, slot_array = make_inputs(slots, dtype=dtype)
    want_k, want_v = np.array(k_pages), np.array(v_pages)
    for token, slot in enumerate(slots):
        if slot < PADDING:
            want_k[slot // PAGE_SIZE, :, slot % PAGE_SIZE] = k[token]
            want_v[slot // PAGE_SIZE, :, slot % PAGE_SIZE] = v[token]
    got_k, got_v = kv_append(k_pages, v_pages, k, v, slot_array, backend=backend)
    np.testing.assert_array_equal(got_k, want_k)
    np.testing.assert_array_equal(got_v, want_v)


@pytest.mark.parametrize(
    ("dtype", "slots"), [("float32", BATCHES[0]), ("bfloat16", BATCHES[0]), ("float32", BATCHES[1])]
)
def test_kernel_matches_reference(slots, dtype, capfd):
    inputs = make_inputs(slots, dtype=dtype)
    want = kv_append(*inputs, backend=Backend.REFERENCE)
    got = kv_append(*inputs, backend=Backend.INTERPRET)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert_no_race(capfd)


CHUNK = [*range(5, 16), *range(32, 48), *range(64, 81)]  # runs through tiles and pages
DECODE = [16 * page + offset for page, offset in enumerate([3, 15, 0, 7, 8, 2])]
PIECES = [3, PADDING, 4, 5, PADDING, PADDING, 8, 40]  # of one group of rows


@pytest.mark.parametrize(
    ("slots", "tile_tokens"),
    [
        (PIECES, 256),
        (CHUNK, 256),
        pytest.param(CHUNK, 8, marks=pytest.mark.slow),
        pytest.param(DECODE, 8, marks=pytest.mark.slow),
        pytest.param(PIECES, 8, marks=pytest.mark.slow),
    ],
)
def test_kernel_writes_runs_of_slots(slots, tile_tokens, monkeypatch, capfd):
    monkeypatch.setattr(pallas_tpu, "TILE_TOKENS", tile_tokens)
    inputs = make_inputs(slots)
    want = kv_append(*inputs, backend=Backend.REFERENCE)
    got = kv_append(*inputs, backend=Backend.INTERPRET)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert_no_race(capfd)


@pytest.mark.parametrize("head_dim", [pytest.param(96, marks=pytest.mark.slow), 256])
def test_kernel_takes_head_dims(head_dim, monkeypatch, capfd):
    monkeypatch.setattr(f"{__name__}.HEAD_DIM", head_dim)
    inputs = make_inputs([*range(30, 50), PADDING], dtype="bfloat16")
    want = kv_append(*inputs, backend=Backend.REFERENCE)
    got = kv_append(*inputs, backend=Backend.INTERPRET)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert_no_race(capfd)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.INTERPRET])
def test_int8_pages_hold_numbers_and_scales(backend, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PAGE_SIZE", 32)
    k_pages, _, k, v, slots = make_inputs([40, 41, 7, PADDING * 2])
    numbers = jnp.zeros(k_pages.shape, jnp.int8)
    scales = jnp.zeros(k_pages.shape[:3], jnp.float32)
    k_numbers, v_numbers, k_scales, v_scales = kv_append(
        numbers, numbers, k, v, slots, k_scales=scales, v_scales=scales, backend=backend
    )
    for stored, scale, new in ((k_numbers, k_scales, k), (v_numbers, v_scales, v)):
        for token, (page, offset) in enumerate([(1, 8), (1, 9), (0, 7)]):
            got = stored[page, :, offset].astype(jnp.float32) * scale[page, :, offset, None]
            np.testing.assert_allclose(got, new[token], atol=float(jnp.abs(new).max()) / 127)
        assert int((stored != 0).any(axis=3).sum()) == 3 * KV_HEADS


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.XLA])
def test_tokens_are_stored_in_the_pages_dtype(backend):
    k_pages, v_pages, k, v, slots = make_inputs([3])
    half = lambda pages: pages.astype(jnp.bfloat16)
    got, _ = kv_append(half(k_pages), half(v_pages), k, v, slots, backend=backend)
    np.testing.assert_array_equal(got[0, :, 3], half(k[0]))


def test_donated_pages_are_updated_in_place():
    inputs = make_inputs([3, 4, 5], pages=500)
    compiled = jax.jit(kv_append, donate_argnums=(0, 1)).lower(*inputs).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < inputs[0].nbytes // 10
    assert memory.alias_size_in_bytes >= 2 * inputs[0].nbytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_for_tpu_without_a_tpu(dtype):
    op = jax.jit(functools.partial(kv_append, backend=Backend.PALLAS))
    lowered = op.trace(*make_inputs([3, 4], dtype=dtype)).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()


def test_shapes_that_the_kernel_refuses():
    inputs = make_inputs([3], dtype="float16")
    with pytest.raises(ValueError, match="pages of float16; float32, bfloat16 and int8 are taken"):
        kv_append(*inputs, backend=Backend.INTERPRET)
