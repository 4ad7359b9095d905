"""A part in pieces: cut without gaps, done with the last piece, failed with the first that is."""

from concurrent.futures import Future

import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool import tcp_sending
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.tcp_lane import Parcel
from memserve_jax.mempool.tcp_sending import Sending, cut

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, block_size_tokens=2, head_dim=2, dtype="float32")


@pytest.mark.parametrize(
    ("part", "piece_rows", "sizes"),
    [
        (Part(0, 5, 0, 2), 100, [5]),
        (Part(3, 5, 0, 2), 3, [2, 2, 1]),
        (Part(3, 4, 1, 1, 1, 1), 8, [4]),
        (Part(0, 3, 0, 2), 0.5, [1, 1, 1]),
    ],
)
def test_pieces_make_up_the_part(monkeypatch, part, piece_rows, sizes):
    row_bytes = part.num_bytes(LAYOUT) // part.num_blocks
    monkeypatch.setattr(tcp_sending, "PIECE_BYTES", int(piece_rows * row_bytes))
    pieces = list(cut(part, LAYOUT))
    assert [piece.num_blocks for piece in pieces] == sizes
    assert sum(piece.num_cells for piece in pieces) == part.num_cells
    first = part.first_block
    for piece in pieces:
        assert piece.first_block == first
        first += piece.num_blocks


def parcel(num_bytes=8):
    return Parcel(
        transfer_id="t",
        part=Part(0, 1, 0, 2),
        payload=None,
        ticket=b"",
        outcome=Future(),
        num_bytes=num_bytes,
    )


@pytest.fixture
def clock():
    return ManualClock(5.0)


def test_it_is_done_with_the_last_piece(clock):
    landed = []
    sending = Sending(clock, lambda *what: landed.append(what))
    pieces = [parcel(), parcel(3)]
    sending.add(pieces[0])
    pieces[0].sent_since_s = 5.0
    pieces[0].outcome.set_result(None)
    assert not sending.outcome.done()  # more may follow
    sending.add(pieces[1])
    sending.complete()
    pieces[1].sent_since_s = 6.0
    clock.advance(2.0)
    pieces[1].outcome.set_result(None)
    assert sending.outcome.result(0) is None
    assert landed == [(11, 2.0)]


def test_it_fails_with_the_first_piece_that_does(clock):
    landed = []
    sending = Sending(clock, lambda *what: landed.append(what))
    pieces = [parcel() for _ in range(3)]
    for piece in pieces:
        sending.add(piece)
    pieces[1].outcome.set_exception(TransferFailedError("first"))
    pieces[2].outcome.set_exception(TransferFailedError("second"))
    pieces[0].outcome.set_result(None)
    sending.complete()
    assert str(sending.outcome.exception(0)) == "first"
    assert landed == []
