"""What a sender says of bytes to come, and what is refused of it."""

import dataclasses

import jax
import pytest

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.shipment import Shipment
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding
from tests.helpers.ports import TICKET, Landed

LAYOUT = KVLayout(num_layers=2, num_kv_heads=4, block_size_tokens=4, head_dim=8, dtype="float32")
SHIPMENT = Shipment(
    ticket=TICKET, dtype="float32", shape=LAYOUT.packed_shape(4), num_pieces=2, timeout_s=1.5
)


def port():
    mesh = make_mesh(jax.devices()[:1], 1)
    return Landed("d0", LAYOUT, packed_sharding(mesh, 4)).port


def test_it_survives_the_wire():
    assert Shipment.from_bytes(SHIPMENT.to_bytes()) == SHIPMENT


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b'{"ticket": "zz"}'])
def test_what_is_none_is_refused(text):
    with pytest.raises(TransferFailedError, match="detail: got"):
        Shipment.from_bytes(text)


@pytest.mark.parametrize("num_blocks", [3, 4])
def test_padding_is_allowed(num_blocks):
    SHIPMENT.check(Part.whole(LAYOUT, num_blocks), port())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dtype": "bfloat16"}, "dtype: got bfloat16, allowed: float32"),
        ({"shape": (4, 2, 2, 4, 4)}, "shape: got"),
        ({"shape": LAYOUT.packed_shape(3)}, "shape: got"),
        ({"shape": LAYOUT.packed_shape(8)}, "shape: got"),
        ({"shape": (4, 2, 2, 4, 4, 9)}, "shape: got"),
        ({"num_pieces": 0}, "num_pieces: got 0"),
        ({"num_pieces": 3}, "num_pieces: got 3, allowed: what divides 4 heads"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changed, named):
    with pytest.raises(TransferFailedError, match=named):
        dataclasses.replace(SHIPMENT, **changed).check(Part.whole(LAYOUT, 4), port())
