"""Sharding rules give every device whole heads."""

import jax
import pytest
from jax.sharding import PartitionSpec

from memserve_jax.core.errors import CheckpointError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.parallel import sharding
from memserve_jax.parallel.mesh import make_mesh


def mesh_of(tp: int):
    return make_mesh(jax.devices()[:tp], tp)


@pytest.mark.parametrize(("heads", "tp", "times"), [(4, 2, 1), (2, 4, 2), (1, 4, 4), (3, 2, 2)])
def test_replication_agrees_with_the_layout(heads, tp, times):
    layout = KVLayout(
        num_layers=1, num_kv_heads=heads, block_size_tokens=4, head_dim=8, dtype="float32"
    )
    assert sharding.replication(heads, tp) == times
    assert layout.heads_on(tp) == heads * times
    shape = layout.page_shape(5, tp)
    assert sharding.page_sharding(mesh_of(tp)).shard_shape(shape)[1] == heads * times // tp


@pytest.mark.parametrize("head_dim", [64, 128])
def test_off_tpu_xla_chooses_how_pages_lie(head_dim):
    mesh = mesh_of(2)
    assert sharding.page_format(mesh, head_dim) == sharding.page_sharding(mesh)


def test_packed_blocks_are_split_only_over_whole_true_heads():
    split, whole = (sharding.packed_sharding(mesh_of(2), heads) for heads in (4, 3))
    assert split.shard_shape((7, 1, 2, 4, 8, 16)) == (7, 1, 2, 2, 8, 16)
    assert whole.shard_shape((7, 1, 2, 3, 8, 16)) == (7, 1, 2, 3, 8, 16)


def test_weights_are_split_by_their_last_name():
    mesh = mesh_of(2)
    spec = sharding.weight_sharding(mesh, "layers.3.attention.wq", (4, 8, 16)).spec
    assert spec == PartitionSpec("model")
    spec = sharding.weight_sharding(mesh, "layers.3.mlp.down", (16, 32)).spec
    assert spec == PartitionSpec(None, "model")
    assert sharding.weight_sharding(mesh, "norm.scale", (16,)).spec == PartitionSpec()


def test_an_axis_that_does_not_divide_is_replicated():
    assert sharding.weight_sharding(mesh_of(2), "embedding", (263, 16)).spec == PartitionSpec()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("layers.0.mlp.up", "float32"), ("embedding", "float32"), ("norm.scale", "bfloat16")],
)
def test_cpus_hold_matrices_wide(name, dtype):
    assert sharding.weight_dtype(mesh_of(1), name, "bfloat16") == dtype


def test_logits_are_split_as_the_head_is():
    mesh = mesh_of(2)
    assert sharding.logit_sharding(mesh, (3, 264)).spec == PartitionSpec(None, "model")
    assert sharding.logit_sharding(mesh, (3, 263)).spec == PartitionSpec()


def test_query_heads_must_divide():
    sharding.check_heads(12, 4)
    with pytest.raises(CheckpointError, match="tp: got 4 for 6 query heads, allowed: 1, 2, 3, 6"):
        sharding.check_heads(6, 4)
