"""Both passes agree with each other, leave padding alone, and update pages in place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.core.errors import CheckpointError
from memserve_jax.model.batch import DecodeBatch, PrefillBatch
from memserve_jax.model.bundle import ModelBundle, make_skeleton
from memserve_jax.model.config import read_model_config
from memserve_jax.parallel.mesh import make_mesh
from tests.helpers.goldens import load_golden
from tests.helpers.paged_runner import zero_pages
from tests.helpers.tiny import tiny_bundle

BLOCK, BLOCKS, ROWS, CHUNK = 4, 8, 2, 8
DROPPED = BLOCK * BLOCKS
TABLES = jnp.array([[3, 1, 6], [0, 7, 2]], jnp.int32)
TOKENS = np.array([5, 250, 17, 99, 140, 3], np.int32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> ModelBundle:
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prefill(bundle):
    return jax.jit(bundle.prefill)


@pytest.fixture(scope="module")
def decode(bundle):
    return jax.jit(bundle.decode)


def slots(row: int, positions: np.ndarray) -> np.ndarray:
    return np.asarray(TABLES)[row][positions // BLOCK] * BLOCK + positions % BLOCK


def prefill_batch(row: int, start: int, stop: int, *, token_of_padding: int = 0) -> PrefillBatch:
    """`TOKENS[start:stop]` of one row; the other row has no tokens."""
    count, span = stop - start, np.arange(start, stop)
    ids = np.full(CHUNK, token_of_padding, np.int32)
    positions, where = np.zeros(CHUNK, np.int32), np.full(CHUNK, DROPPED, np.int32)
    ids[:count], positions[:count], where[:count] = TOKENS[start:stop], span, slots(row, span)
    starts = [0, count, count] if row == 0 else [0, 0, count]
    lens = [stop, 0] if row == 0 else [0, stop]
    arrays = (ids, positions, where, TABLES, np.array(starts), np.array(lens))
    return PrefillBatch(*(jnp.asarray(x, jnp.int32) for x in arrays))


def decode_batch(row: int, position: int) -> DecodeBatch:
    """`TOKENS[position]` of one row; the other row is padding."""
    ids, positions, lens = (np.zeros(ROWS, np.int32) for _ in range(3))
    where = np.full(ROWS, DROPPED, np.int32)
    ids[row], positions[row], lens[row] = TOKENS[position], position, position + 1
    where[row] = slots(row, np.array([position]))[0]
    return DecodeBatch(*(jnp.asarray(x) for x in (ids, positions, where, TABLES, lens)))


@pytest.mark.parametrize("row", [0, 1])
def test_chunks_and_decode_agree_with_one_prefill(bundle, prefill, decode, row):
    pages = zero_pages(bundle, BLOCKS, BLOCK)
    whole, _ = prefill(bundle.params, pages, prefill_batch(row, 0, 6))
    _, part = prefill(bundle.params, pages, prefill_batch(row, 0, 3))
    _, part = prefill(bundle.params, part, prefill_batch(row, 3, 5))
    by_decode, _ = decode(bundle.params, part, decode_batch(row, 5))
    by_prefill, _ = prefill(bundle.params, part, prefill_batch(row, 5, 6))
    np.testing.assert_allclose(by_decode[row], whole[row], atol=1e-4)
    np.testing.assert_allclose(by_prefill[row], whole[row], atol=1e-4)


def test_padding_writes_nothing_and_changes_nothing(bundle, prefill):
    pages = zero_pages(bundle, BLOCKS, BLOCK)
    logits, after = prefill(bundle.params, pages, prefill_batch(0, 0, 6))
    other, _ = prefill(bundle.params, pages, prefill_batch(0, 0, 6, token_of_padding=77))
    np.testing.assert_array_equal(logits[0], other[0])
    for page in (*after.k, *after.v):
        used = np.abs(np.asarray(page)).sum(axis=(1, 2, 3)) > 0
        assert used.nonzero()[0].tolist() == [1, 3]


def test_layer_by_layer_is_one_prefill(bundle, prefill):
    pages = zero_pages(bundle, BLOCKS, BLOCK)
    batch = prefill_batch(1, 0, 6)
    whole, after = prefill(bundle.params, pages, batch)
    x = jax.jit(bundle.embed)(bundle.params_of(0, 1), batch)
    for layer in range(2):
        run = jax.jit(functools.partial(bundle.run, first_layer=layer))
        x, part = run(bundle.params_of(layer, 1), x, pages.span(layer, 1), batch)
        pages = pages.with_span(layer, part)
    logits = jax.jit(bundle.logits)(bundle.params_of(1, 1), x, batch)
    np.testing.assert_allclose(logits[1], whole[1], atol=1e-4)
    for page, wanted in zip((*pages.k, *pages.v), (*after.k, *after.v), strict=True):
        np.testing.assert_allclose(page, wanted, atol=1e-4)


def test_a_group_holds_the_weights_of_its_layers_and_of_no_layer(bundle):
    names = {name for name in bundle.params if not name.startswith("layers.0.")}
    assert set(bundle.params_of(1, 1)) == names
    assert set(bundle.params_of(0, 2)) == set(bundle.params)
    with pytest.raises(TypeError):
        bundle.embed({}, prefill_batch(0, 0, 6))


def test_logits_are_float32_in_any_dtype(tmp_path):
    bundle = tiny_bundle(tmp_path, dtype="bfloat16")
    pages = jax.eval_shape(lambda: zero_pages(bundle, BLOCKS, BLOCK))
    logits, out = jax.eval_shape(bundle.decode, bundle.params, pages, decode_batch(0, 0))
    assert (logits.shape, logits.dtype) == ((ROWS, 264), jnp.float32)
    assert {page.dtype for page in out.k} == {jnp.dtype("bfloat16")}


def test_pages_are_updated_in_place(bundle):
    num_blocks = 4096
    step = jax.jit(bundle.decode, donate_argnums=1)
    pages = zero_pages(bundle, num_blocks, BLOCK)
    page_bytes = sum(page.nbytes for page in (*pages.k, *pages.v))
    memory = step.lower(bundle.params, pages, decode_batch(0, 0)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= page_bytes
    assert memory.temp_size_in_bytes < pages.k[0].nbytes


def test_phases_of_a_layer_carry_names(bundle):
    pages = zero_pages(bundle, BLOCKS, BLOCK)
    lowered = jax.jit(bundle.decode).lower(bundle.params, pages, decode_batch(0, 0))
    text = lowered.as_text(debug_info=True)
    for phase in ("embedding", "qkv", "rope", "kv_append", "attention", "output", "mlp", "head"):
        assert f"{phase}/" in text


def test_weights_have_dotted_names_and_replicated_heads():
    config = read_model_config(load_golden("llama3").path)
    mesh = make_mesh(jax.devices()[:4], 4)
    shapes = make_skeleton(config, mesh=mesh, dtype="float32").shapes
    assert shapes["layers.1.attention.wk"].shape == (4, 16, 64)
    assert shapes["layers.1.attention.wk"].sharding.shard_shape((4, 16, 64)) == (1, 16, 64)
    assert "norm.scale" in shapes and "head" not in shapes


def test_query_heads_must_divide():
    config = read_model_config(load_golden("llama3").path)
    with pytest.raises(CheckpointError, match="tp: got 3 for 8 query heads"):
        make_skeleton(config, mesh=make_mesh(jax.devices()[:3], 3), dtype="float32")
