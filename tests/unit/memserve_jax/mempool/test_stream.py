"""What is fed is sent: every cell the receiver lacks once, whenever it answers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.stream import Ready, Stream
from memserve_jax.mempool.transfer import Transfer
from tests.helpers.pools import make_pool

S = 2  # of the small pools


class Feeding:
    """A stream of some blocks, and what it packed and sent."""

    def __init__(self, num_blocks, num_layers):
        self.pool = make_pool(hbm_blocks=32)
        self.lease = self.pool.alloc_mem(num_blocks)
        self.num_blocks, self.num_layers = num_blocks, num_layers
        self.packed, self.sent = [], []
        self.stream = Stream(
            Transfer(TransferId("t"), InstanceId("d0"), deadline_s=1.0),
            num_blocks=num_blocks,
            num_layers=num_layers,
            gather=self.gather,
            send=lambda part, payload: self.sent.append((part, payload)),
            finished=lambda: None,
        )

    def gather(self, blocks, *, first_layer, num_layers):
        self.packed.append((list(blocks), first_layer, num_layers))
        layers = range(first_layer, first_layer + num_layers)
        cells = [[(block, layer) for layer in layers] for block in blocks]
        return np.array(cells)[:, :, None, None, None]  # n l C K S H, H naming the cell

    def feed(self, num_blocks, *, old=0, group=None):
        for first, count in [group] if group else [(0, self.num_layers)]:
            ready = Ready(
                first_layer=first, num_layers=count, num_blocks=num_blocks, num_old_blocks=old
            )
            self.stream.feed(self.lease, ready)

    @property
    def parts(self):
        return [part for part, _ in self.sent]

    def cells(self, num_held):
        """The cells sent, each of which must be the KV of the block it is sent as."""
        found = []
        ids = self.lease.block_ids
        for part, payload in self.sent:
            for row, column in itertools.product(range(part.num_blocks), range(part.num_layers)):
                block, layer = payload[row, column, 0, 0, 0].tolist()
                assert block == ids[num_held + part.first_block + row]
                assert layer == part.first_layer + column
                found.append((num_held + part.first_block + row, layer))
        return found

    def close(self):
        self.stream.close()
        self.lease.close()
        assert self.pool.num_leased == 0
        self.pool.check()


def test_after_the_answer_what_is_fed_is_sent_at_once():
    feeding = Feeding(5, 4)
    feeding.stream.answered(1)
    feeding.feed(3, group=(0, 2))
    assert feeding.parts == [Part(0, 2, 0, 2)]
    feeding.feed(3, group=(2, 2))
    feeding.feed(5, group=(0, 2))
    feeding.feed(5, group=(2, 2))
    assert feeding.parts[1:] == [Part(0, 2, 2, 2), Part(2, 2, 0, 2), Part(2, 2, 2, 2)]
    assert not feeding.stream.is_complete
    feeding.stream.finish()
    assert feeding.stream.is_complete
    feeding.close()


def test_fresh_kv_is_packed_before_the_answer_and_cached_kv_after_it():
    feeding = Feeding(5, 2)
    for group in ((0, 1), (1, 1)):
        feeding.feed(5, old=2, group=group)
    ids = feeding.lease.block_ids
    assert feeding.packed == [(ids[2:], 0, 1), (ids[2:], 1, 1)]
    assert not feeding.sent
    feeding.stream.answered(1)
    assert feeding.packed[2:] == [(ids[1:2], 0, 2)]  # all layers of what was cached, in one go
    assert feeding.parts == [Part(0, 1, 0, 2), Part(1, 3, 0, 1), Part(1, 3, 1, 1)]
    feeding.close()


def test_a_later_chunk_gives_up_what_was_packed_of_the_one_before():
    feeding = Feeding(4, 2)
    feeding.feed(2)
    feeding.feed(4, old=2)
    feeding.stream.answered(0)
    assert feeding.parts == [Part(0, 2, 0, 2), Part(2, 2, 0, 2)]
    assert [blocks for blocks, _, _ in feeding.packed] == [
        feeding.lease.block_ids[:2],
        feeding.lease.block_ids[2:],
        feeding.lease.block_ids[:2],
    ]
    feeding.close()


def test_what_is_given_up_stays_in_its_blocks():
    feeding = Feeding(3, 2)
    feeding.feed(3, group=(0, 1))
    feeding.feed(3, group=(1, 1))
    feeding.stream.unstage()
    assert feeding.stream._staged == []
    feeding.stream.answered(0)
    assert feeding.parts == [Part(0, 3, 0, 2)]
    feeding.close()


def test_a_receiver_with_some_of_what_was_packed_gets_the_rest():
    feeding = Feeding(4, 1)
    feeding.feed(4)
    feeding.stream.answered(3)
    assert feeding.parts == [Part(0, 1, 0, 1)]
    assert feeding.cells(3) == [(3, 0)]
    feeding.close()


def test_a_receiver_with_everything_gets_nothing():
    feeding = Feeding(3, 2)
    feeding.feed(3)
    feeding.stream.answered(3)
    feeding.stream.finish()
    assert feeding.stream.is_complete
    assert not feeding.sent
    feeding.close()


def test_what_comes_after_the_end_is_dropped():
    feeding = Feeding(2, 1)
    feeding.stream.transfer.fail(TransferFailedError("over"))
    feeding.feed(2)
    assert not feeding.packed
    feeding.close()


def test_misuse_is_found():
    feeding = Feeding(4, 2)
    feeding.feed(3, group=(0, 1))
    with pytest.raises(AssertionError, match="fed apart"):
        feeding.feed(4)
    with pytest.raises(AssertionError, match="backwards"):
        feeding.feed(2, group=(0, 1))
    with pytest.raises(AssertionError, match="before all was fed"):
        feeding.stream.finish()
    feeding.close()


@given(data=st.data())
def test_every_cell_that_is_lacking_is_sent_once(data):
    num_layers, num_groups = 4, data.draw(st.integers(1, 4))
    bounds = [num_layers * group // num_groups for group in range(num_groups + 1)]
    groups = [(first, stop - first) for first, stop in itertools.pairwise(bounds)]
    num_blocks = data.draw(st.integers(1, 8))
    num_held = data.draw(st.integers(0, num_blocks))
    num_cached = data.draw(st.integers(0, num_blocks - 1))
    stops = sorted(data.draw(st.sets(st.integers(num_cached + 1, num_blocks), max_size=3)))
    stops = [*(stop for stop in stops if stop < num_blocks), num_blocks]
    feeding = Feeding(num_blocks, num_layers)
    events = []
    for old, stop in itertools.pairwise([num_cached, *stops]):
        events += [("feed", old, stop, group) for group in groups]
    events.append(("finish",))
    events.insert(data.draw(st.integers(0, len(events))), ("answer",))
    events.insert(data.draw(st.integers(0, len(events))), ("unstage",))
    for event, *told in events:
        match event:
            case "feed":
                old, stop, group = told
                feeding.feed(stop, old=old, group=group)
            case "finish":
                feeding.stream.finish()
            case "unstage":
                feeding.stream.unstage()
            case "answer":
                feeding.stream.answered(num_held)
    assert feeding.stream.is_complete
    cells = feeding.cells(num_held)
    wanted = itertools.product(range(num_held, num_blocks), range(num_layers))
    assert sorted(cells) == sorted(wanted)
    feeding.close()
