"""Pieces of a payload, and the payload again on another mesh."""

import jax
import numpy as np
import pytest

from memserve_jax.mempool.wire_shards import (
    assemble,
    landing_specs,
    moved,
    num_splits,
    pieces_of,
)
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding


def sharding(num_heads, tp, first_device):
    return packed_sharding(
        make_mesh(jax.devices()[first_device : first_device + tp], tp), num_heads
    )


MESHES = pytest.mark.parametrize(
    ("num_heads", "tp", "peer_tp"),
    [
        (4, 1, 1),
        (4, 1, 2),
        (4, 2, 1),
        (4, 4, 2),
        (4, 2, 4),
        (4, 4, 4),
        (3, 2, 2),
        (3, 1, 3),
        (3, 3, 2),
        (6, 3, 2),
        (6, 2, 3),
        (2, 4, 2),
    ],
)


@MESHES
def test_a_payload_survives_the_change_of_mesh(num_heads, tp, peer_tp):
    payload = np.random.default_rng(0).random((2, 3, 2, num_heads, 4, 5), np.float32)
    source, target = sharding(num_heads, tp, 0), sharding(num_heads, peer_tp, 4)
    pieces = pieces_of(jax.device_put(payload, source))
    assert len(pieces) == num_splits(source)
    specs = landing_specs(payload.shape, "float32", len(pieces), target)
    landed = [jax.device_put(p, s.sharding) for p, s in zip(pieces, specs, strict=True)]
    assert [piece.shape for piece in landed] == [spec.shape for spec in specs]
    arrived = assemble(landed, target)
    assert arrived.sharding == target
    np.testing.assert_array_equal(np.asarray(arrived), payload)


@MESHES
def test_a_payload_moves_to_another_mesh_of_the_process(num_heads, tp, peer_tp):
    payload = np.random.default_rng(0).random((2, 3, 2, num_heads, 4, 5), np.float32)
    source, target = sharding(num_heads, tp, 0), sharding(num_heads, peer_tp, 4)
    sent = jax.device_put(payload, source)
    arrived = moved(sent, target)
    assert arrived.sharding == target
    assert arrived.is_fully_addressable
    np.testing.assert_array_equal(np.asarray(arrived), payload)
    for shard in arrived.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), payload[shard.index])
    of_sent = {s.data.unsafe_buffer_pointer() for s in sent.addressable_shards}
    of_arrived = {s.data.unsafe_buffer_pointer() for s in arrived.addressable_shards}
    assert of_sent.isdisjoint(of_arrived)  # a copy


def test_equal_shards_are_not_copied():
    payload = np.zeros((1, 1, 2, 4, 2, 2), np.float32)
    source = sharding(4, 2, 0)
    sent = jax.device_put(payload, source)
    pieces = pieces_of(sent)
    whole = assemble(pieces, source)
    assert [s.data.unsafe_buffer_pointer() for s in whole.addressable_shards] == [
        s.data.unsafe_buffer_pointer() for s in sent.addressable_shards
    ]
