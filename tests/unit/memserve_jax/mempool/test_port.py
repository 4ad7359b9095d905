"""The port: every cell is admitted once, on its ticket, while its reservation is open."""

import threading

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import Tier
from memserve_jax.mempool.part import Part
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding
from tests.helpers.ports import TICKET, Landed

LAYOUT = KVLayout(num_layers=3, num_kv_heads=1, block_size_tokens=1, head_dim=1, dtype="float32")
PART = Part.whole(LAYOUT, 2)


def make_landed():
    return Landed("d0", LAYOUT, packed_sharding(make_mesh(jax.devices()[:1], 1), 1))


@pytest.fixture
def landed():
    return make_landed()


@pytest.mark.parametrize(
    ("transfer", "part", "ticket", "message"),
    [
        ("u", PART, TICKET, "u: d0 expects no bytes of it"),
        ("t", PART, b"other", "t: not on this ticket"),
        ("t", PART, b"", "t: not on this ticket"),
        ("t", Part.whole(LAYOUT, 3), TICKET, "blocks: got 0 to 3, allowed: within 0 to 2"),
    ],
)
def test_what_nobody_expects_is_refused(landed, transfer, part, ticket, message):
    landed.expect("t", 2)
    with pytest.raises(TransferFailedError, match=message):
        landed.port.admits(transfer, part, ticket)
    assert landed.port.admits("t", PART, TICKET) is Tier.HBM


def test_only_what_was_admitted_is_delivered_and_once(landed):
    payload = np.zeros(PART.shape(LAYOUT), np.float32)
    landed.expect("t", 2, tier=Tier.HOST)
    landed.port.deliver("t", PART, payload)
    assert landed.parts == []
    assert landed.port.admits("t", PART, TICKET) is Tier.HOST
    landed.port.deliver("t", PART, payload)
    landed.port.deliver("t", PART, payload)
    assert [each[:2] for each in landed.parts] == [("t", PART)]


def test_nothing_gets_in_once_it_is_shut(landed):
    landed.expect("t", 2)
    landed.port.admits("t", PART, TICKET)
    assert landed.port.num_open == 1
    landed.port.shut("t")
    landed.port.shut("t")
    landed.port.deliver("t", PART, np.zeros(PART.shape(LAYOUT), np.float32))
    with pytest.raises(TransferFailedError):
        landed.port.admits("t", PART, TICKET)
    assert (landed.parts, landed.port.num_open) == ([], 0)


def span(total):
    return st.tuples(st.integers(0, total - 1), st.integers(1, total)).filter(
        lambda span: sum(span) <= total
    )


BOXES = st.builds(
    lambda blocks, layers, sides: Part(*blocks, *layers, *sides), span(3), span(3), span(2)
)


@given(parts=st.lists(BOXES, max_size=8))
def test_no_cell_is_admitted_twice(parts):
    landed = make_landed()
    landed.expect("t", 3)
    seen = set()
    for part in parts:
        cells = {
            (block, layer, side)
            for block in range(part.first_block, part.first_block + part.num_blocks)
            for layer in range(part.first_layer, part.first_layer + part.num_layers)
            for side in range(part.first_side, part.first_side + part.num_sides)
        }
        may = not cells & seen and part.why_not_of(LAYOUT, 3) is None
        try:
            landed.port.admits("t", part, TICKET)
            assert may
            seen |= cells
        except TransferFailedError:
            assert not may


def test_many_threads_get_one_admission(landed):
    landed.expect("t", 2)
    admitted = []

    def admit():
        try:
            admitted.append(landed.port.admits("t", PART, TICKET))
        except TransferFailedError:
            admitted.append(None)

    threads = [threading.Thread(target=admit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admitted.count(Tier.HBM) == 1
