"""Who lives, as far as is known."""

import pytest

from memserve_jax.mempool.membership import Membership


@pytest.mark.parametrize(
    ("broadcasts", "peer", "epoch", "has_gone"),
    [
        ([], "p0", 1, False),  # never named: it may have joined a moment ago
        ([{"p0": 2}], "p1", 1, False),
        ([{"p0": 2}], "p0", 2, False),
        ([{"p0": 2}], "p0", None, False),
        ([{"p0": 2}], "p0", 1, True),
        ([{"p0": 2}], "p0", 3, False),  # its restart is not broadcast yet
        ([{"p0": 2}, {}], "p0", 2, True),
        ([{"p0": 2}, {}, {}], "p0", None, True),
        ([{"p0": 2}, {}], "p0", 3, False),  # nor here
        ([{"p0": 2}, {}, {}], "p0", 1, True),
        ([{"p0": 2}, {}, {"p0": 3}], "p0", 3, False),
        ([{"p0": 2}, {}, {"p0": 3}], "p0", 2, True),
    ],
)
def test_who_has_gone(broadcasts, peer, epoch, has_gone):
    members = Membership()
    for live in broadcasts:
        members.change(live)
    assert members.has_gone(peer, epoch) is has_gone
    assert members.epoch(peer) == (broadcasts or [{}])[-1].get(peer)
