"""Both host stores give back what they were given, however late it was computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.host_tier import ArenaStore, PinnedStore, make_host_store
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, block_size_tokens=2, head_dim=4, dtype="bfloat16")


@pytest.fixture(params=[1, 2])
def mesh(request):
    return make_mesh(jax.devices()[: request.param], request.param)


@pytest.fixture(params=[ArenaStore, PinnedStore])
def store(request, mesh):
    return request.param(LAYOUT, mesh, 6)


def packed(mesh, values):
    """One block per value, filled with it."""
    kv = np.zeros(LAYOUT.packed_shape(len(values)), jnp.bfloat16)
    kv += np.array(values, jnp.bfloat16).reshape(-1, 1, 1, 1, 1, 1)
    return jax.device_put(kv, packed_sharding(mesh, LAYOUT.num_kv_heads))


def values_of(array, count):
    kv = np.asarray(array.astype(jnp.float32))
    assert (kv == kv[:, :1, :1, :1, :1, :1]).all()
    return kv[:count, 0, 0, 0, 0, 0].tolist()


def test_blocks_come_back_in_the_order_asked_for(store, mesh):
    store.put([4, 0, 2], packed(mesh, [1, 2, 3, 9]))  # the fourth is padding
    assert values_of(store.get([2, 4]), 2) == [3, 1]
    result = store.get([0, 2, 4])
    assert result.shape == LAYOUT.packed_shape(4)
    assert result.sharding == packed_sharding(mesh, LAYOUT.num_kv_heads)
    assert values_of(result, 3) == [2, 3, 1]


def test_the_last_of_two_stores_counts(store, mesh):
    store.put([1], packed(mesh, [1]))
    store.put([1, 3], packed(mesh, [2, 3]))
    store.settle()
    store.put([3], packed(mesh, [4]))
    assert values_of(store.get([1, 3]), 2) == [2, 4]


def test_what_is_stored_outlives_its_source(store, mesh):
    source = packed(mesh, [5, 6])
    store.put([0, 1], source)
    store.get([0])
    source.delete()
    assert values_of(store.get([0, 1]), 2) == [5, 6]


def test_settling_empties_the_queue_of_the_arena(mesh):
    store = ArenaStore(LAYOUT, mesh, 4)
    kv = packed(mesh, [1, 2])
    store.put([0, 1], kv)
    jax.block_until_ready(kv)
    store.settle()
    assert not store._arriving


def test_a_pinned_block_that_was_never_stored_is_an_error(mesh):
    with pytest.raises(KeyError):
        PinnedStore(LAYOUT, mesh, 2).get([0])


def test_pinned_blocks_lie_in_pinned_memory(mesh):
    store = PinnedStore(LAYOUT, mesh, 2)
    store.put([1], packed(mesh, [1]))
    assert store._blocks[1].sharding.memory_kind == "pinned_host"


def test_cpu_uses_the_arena(mesh):
    assert isinstance(make_host_store(LAYOUT, mesh, 1), ArenaStore)
