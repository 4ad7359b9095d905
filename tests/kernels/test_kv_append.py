"""kv_append writes each token where its slot says, drops padding, and copies no pages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.backend import Backend
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
