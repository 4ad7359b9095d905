"""Bytes leave and come into memory of any sharding, in the order of the wire."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool import tcp_rows
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.stored_rows import StoredRows
from memserve_jax.mempool.tcp_rows import Landing, departing, is_at_hand
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding

LAYOUT = KVLayout(num_layers=3, num_kv_heads=4, block_size_tokens=2, head_dim=2, dtype="bfloat16")
PART = Part.whole(LAYOUT, 5)
DEVICES = [(0,), (1, 2), (1, 2, 3, 4), (0, 1, 2)]  # three: replicated
PASSAGES = [1, 100, 1 << 20]  # bytes: less than a cell, some cells, all of them


def sharding_of(devices):
    return packed_sharding(make_mesh([jax.devices()[i] for i in devices], len(devices)), 4)


def make_kv(num_rows):
    shape = LAYOUT.packed_shape(num_rows)
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(jnp.bfloat16)


def sent(buffers):
    return b"".join(bytes(buffer) for some in buffers for buffer in some)


@pytest.mark.parametrize("passage_bytes", PASSAGES)
@pytest.mark.parametrize("devices", DEVICES)
def test_rows_leave_with_their_heads_together(devices, passage_bytes, monkeypatch):
    monkeypatch.setattr(tcp_rows, "PASSAGE_BYTES", passage_bytes)
    kv = make_kv(8)
    payload = jax.device_put(kv, sharding_of(devices))
    assert sent(departing(payload, PART, 2)) == kv[2:7].tobytes()


@pytest.mark.parametrize("passage_bytes", PASSAGES)
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("part", [PART, Part(3, 2, 1, 2), Part(0, 1, 2, 1, 1, 1)])
def test_rows_land_where_they_belong(part, devices, passage_bytes, monkeypatch):
    monkeypatch.setattr(tcp_rows, "PASSAGE_BYTES", passage_bytes)
    shape = part.shape(LAYOUT)
    kv = (np.arange(np.prod(shape)) % 251).reshape(shape).astype(jnp.bfloat16)
    landing = Landing(part, LAYOUT, sharding_of(devices))
    fill(landing, kv.tobytes())
    landed = landing.landed()
    assert isinstance(landed, jax.Array)
    assert landed.sharding == sharding_of(devices)
    assert landed.shape[0] in (1, 2, 8)  # padded as compiled copies are
    np.testing.assert_array_equal(np.asarray(landed)[: part.num_blocks], kv)


def test_rows_for_host_are_not_padded():
    landing = Landing(PART, LAYOUT, None)
    fill(landing, make_kv(5).tobytes())
    np.testing.assert_array_equal(landing.landed(), make_kv(5))


def fill(landing, text):
    for room in landing.rooms():
        room[:] = text[: room.nbytes]
        text = text[room.nbytes :]
    assert text == b""
    landing.settle()


@pytest.mark.parametrize(
    "payload", [make_kv(4), StoredRows(list(make_kv(4)))], ids=["together", "apart"]
)
def test_a_payload_with_too_few_rows_is_refused(payload):
    with pytest.raises(ValueError, match="3 rows for a part of 5"):
        departing(payload, PART, 1)


def test_at_hand_is_what_nobody_waits_for_and_lies_together():
    kv = make_kv(2)
    whole = jax.block_until_ready(jax.device_put(kv, sharding_of((1,))))
    assert is_at_hand(kv) and is_at_hand(whole)
    assert not is_at_hand(StoredRows(list(kv)))
    assert not is_at_hand(jax.device_put(kv, sharding_of((1, 2))))
    whole.delete()
    assert not is_at_hand(whole)
