"""The TPU kernels as serving runs them: inside `shard_map`, by the pool and by the model.

Interpreted they do what XLA does; for a TPU they lower, on a machine without one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool import pages as pool_pages
from memserve_jax.mempool.pages import PageStore, make_pages
from memserve_jax.model.batch import DecodeBatch, PrefillBatch
from memserve_jax.model.loader import load_model
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding
from pallas_kernels.backend import Backend
from tests.helpers.tiny import TINY_SHAPE, tiny_checkpoint

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, block_size_tokens=8, head_dim=128, dtype="float32")
SHAPE = dataclasses.replace(TINY_SHAPE, head_dim=128)
NUM_BLOCKS = 4
ON_TPU = "tpu_custom_call"


def lowered(function, *arguments) -> str:
    return function.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()


def ints(*values):
    return jnp.array(values, jnp.int32)


@pytest.mark.parametrize("tp", [1, 2, 4])  # 4: each head is stored twice
def test_copies_of_the_pool(tp):
    mesh = make_mesh(jax.devices()[:tp], tp)
    store = PageStore(LAYOUT, mesh, NUM_BLOCKS, Backend.INTERPRET)
    shape = LAYOUT.packed_shape(2)
    kv = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    store.scatter(jax.device_put(kv, store.packed_sharding), [3, 1])
    np.testing.assert_array_equal(np.asarray(store.gather([1, 3])), kv[::-1])
    assert not np.asarray(store.gather([0, 2])).any()


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_copies_of_the_pool_lower(tp):
    mesh = make_mesh(jax.devices()[:tp], tp)
    pages = make_pages(LAYOUT, mesh, NUM_BLOCKS)
    blocks = np.array([3, 1], np.int32)
    packed = jax.device_put(
        np.zeros(LAYOUT.packed_shape(2), np.float32), packed_sharding(mesh, LAYOUT.num_kv_heads)
    )
    gather = pool_pages._compile_gather(LAYOUT, mesh, Backend.PALLAS)
    scatter = pool_pages._compile_scatter(LAYOUT, mesh, Backend.PALLAS)
    assert ON_TPU in lowered(gather, pages, blocks)
    assert ON_TPU in lowered(scatter, pages, packed, blocks)


@pytest.mark.parametrize("tp", [1, 2])
def test_forward_passes(tp, tmp_path):
    path = tiny_checkpoint(tmp_path / "model", shape=SHAPE)
    mesh = make_mesh(jax.devices()[:tp], tp)
    bundles = {
        backend: load_model(path, mesh=mesh, dtype="float32", kernels=backend)
        for backend in (Backend.XLA, Backend.INTERPRET, Backend.PALLAS)
    }
    layout = bundles[Backend.XLA].config.layout(8, "float32")
    pages = make_pages(layout, mesh, NUM_BLOCKS)
    tables = ints(1, 3)[:, None]
    decode = DecodeBatch(ints(65, 66), ints(0, 0), ints(8, 24), tables, ints(1, 1))
    count = jnp.arange(8, dtype=jnp.int32)
    prefill = PrefillBatch(count + 65, count, count + 8, tables, ints(0, 8, 8), ints(8, 0))
    for name, batch, num_rows in (("decode", decode, 2), ("prefill", prefill, 1)):
        logits = {
            backend: np.asarray(
                jax.jit(getattr(bundles[backend], name))(bundles[backend].params, pages, batch)[0]
            )[:num_rows]
            for backend in (Backend.XLA, Backend.INTERPRET)
        }
        np.testing.assert_allclose(logits[Backend.INTERPRET], logits[Backend.XLA], atol=2e-3)
        for_tpu = bundles[Backend.PALLAS]
        step = jax.jit(getattr(for_tpu, name))
        assert lowered(step, for_tpu.params, pages, batch).count(ON_TPU) == 2 * layout.num_layers
