"""Pages, and the compiled copies of blocks in and out of them."""

import jax
import numpy as np
import pytest

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.pages import PageStore, bucket, make_pages
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import page_sharding

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, block_size_tokens=4, head_dim=8, dtype="float32")


def mesh_of(tp):
    return make_mesh(jax.devices()[:tp], tp)


def blocks_of(count):
    shape = LAYOUT.packed_shape(count)
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_pages_are_zero_and_split_over_heads(tp):
    mesh = mesh_of(tp)
    pages = make_pages(LAYOUT, mesh, 3)
    assert len(pages.k) == len(pages.v) == 2
    for page in (*pages.k, *pages.v):
        assert page.shape == LAYOUT.page_shape(3, tp) == (3, max(2, tp), 4, 8)
        assert page.sharding.is_equivalent_to(page_sharding(mesh), 4)
        assert not np.asarray(page).any()


@pytest.mark.parametrize(
    ("num_blocks", "padded"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (65, 128)]
)
def test_buckets_are_powers_of_two(num_blocks, padded):
    assert bucket(num_blocks) == padded


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_gather_is_the_inverse_of_scatter(tp):
    store = PageStore(LAYOUT, mesh_of(tp), 7, None)
    kv = blocks_of(4)
    store.scatter(jax.device_put(kv, store.packed_sharding), [6, 0, 3])
    packed = store.gather([3, 6, 0])
    assert packed.shape == LAYOUT.packed_shape(4)
    np.testing.assert_array_equal(np.asarray(packed)[:3], kv[[2, 0, 1]])
    others = np.asarray(store.gather([1, 2, 4, 5]))
    assert not others.any()


def test_a_gathered_block_survives_its_reuse():
    store = PageStore(LAYOUT, mesh_of(1), 2, None)
    kv = blocks_of(2)
    old, new = (jax.device_put(each, store.packed_sharding) for each in (kv[:1], kv[1:]))
    store.scatter(old, [1])
    before = store.gather([1])
    store.scatter(new, [1])
    np.testing.assert_array_equal(np.asarray(before), kv[:1])
    np.testing.assert_array_equal(np.asarray(store.gather([1])), kv[1:])


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_layers_and_sides_are_copied_alone(tp):
    store = PageStore(LAYOUT, mesh_of(tp), 7, None)
    kv = blocks_of(3)
    upper = jax.device_put(kv[:, 1:], store.packed_sharding)
    store.scatter(upper, [2, 4, 6], first_layer=1)
    for side in (0, 1):
        cell = jax.device_put(kv[:1, :1, side : side + 1], store.packed_sharding)
        store.scatter(cell, [2], first_side=side)
    np.testing.assert_array_equal(np.asarray(store.gather([2])), kv[:1])
    np.testing.assert_array_equal(np.asarray(store.gather([4, 6], first_layer=1)), kv[1:, 1:])
    for side in (0, 1):
        cell = store.gather([2], num_layers=1, side=side)
        assert cell.sharding.is_equivalent_to(store.packed_sharding, 6)
        np.testing.assert_array_equal(np.asarray(cell), kv[:1, :1, side : side + 1])
    assert not np.asarray(store.gather([4, 6], num_layers=1)).any()


def test_scatter_leaves_the_arrays_of_other_layers_alone():
    store = PageStore(LAYOUT, mesh_of(1), 8, None)
    before = store.pages
    store.scatter(jax.device_put(blocks_of(1)[:, 1:], store.packed_sharding), [5], first_layer=1)
    assert store.pages.k[0] is before.k[0]
    assert before.k[1].is_deleted()
    store.scatter(jax.device_put(blocks_of(1)[:, :1, 1:], store.packed_sharding), [5], first_side=1)
    assert store.pages.k[0] is before.k[0]
    assert before.v[0].is_deleted()


def test_scatter_updates_the_pages_in_place():
    store = PageStore(LAYOUT, mesh_of(1), 64, None)
    packed = jax.device_put(blocks_of(1), store.packed_sharding)
    before = [page.unsafe_buffer_pointer() for page in store.pages.k]
    store.scatter(packed, [5])
    assert [page.unsafe_buffer_pointer() for page in store.pages.k] == before


def test_shapes_are_counted_and_two_stores_share_their_programs():
    store = PageStore(LAYOUT, mesh_of(1), 8, None)
    for count in (1, 3, 4, 2):
        store.gather(list(range(count)))
    assert store.num_compiled == 3
    store.warm_up(4)
    assert store.num_compiled == 6
    store.warm_up(4, spans=(1, 2), cells=True)
    assert store.num_compiled == 6 + 6 + 2
    twin = PageStore(LAYOUT, mesh_of(1), 8, None)
    assert twin._gather is store._gather
