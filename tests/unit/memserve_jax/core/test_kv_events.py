"""Names packed and unpacked, never more in one piece than a message may have."""

from memserve_jax.core.block_names import NAME_BYTES
from memserve_jax.core.kv_events import (
    MAX_UPDATE_BLOCKS,
    KVEvent,
    KVEvents,
    in_pieces,
    split_names,
)
from memserve_jax.core.types import Tier


def test_names_come_back_in_order():
    names = [number.to_bytes(NAME_BYTES, "big") for number in range(2 * MAX_UPDATE_BLOCKS + 1)]
    pieces = list(in_pieces(names))
    assert [len(split_names(piece)) for piece in pieces] == [MAX_UPDATE_BLOCKS] * 2 + [1]
    assert [name for piece in pieces for name in split_names(piece)] == names
    assert list(in_pieces([])) == split_names(b"") == []


def test_events_are_counted():
    event = KVEvent(Tier.HBM, stored=bytes(3 * NAME_BYTES), removed=bytes(NAME_BYTES))
    assert event.num_blocks == 4
    assert KVEvents(5, (event, event)).after == 7
