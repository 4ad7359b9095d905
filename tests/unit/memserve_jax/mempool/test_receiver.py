"""The receiver's side: who gets memory when, and what late or repeated messages do."""

import dataclasses

import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.mempool.control import ReserveCall
from memserve_jax.mempool.part import Part
from tests.helpers.pools import TINY, cache, compute, make_pool

TIMEOUT_S = 10.0
PROMPT = list(range(8))  # 4 blocks of 2


class Door:
    """Calls a pool as `serving` does, and keeps the answers."""

    def __init__(self, pool):
        self.pool = pool
        self.answers = {}
        self.commits = []

    def reserve(self, name, token_ids=PROMPT, **fields):
        size = self.pool.layout.block_size_tokens
        fields.setdefault("sender", "p0")
        fields.setdefault("sender_epoch", 1)
        fields.setdefault("insert", True)
        fields.setdefault("first_block", 0)
        fields.setdefault("num_blocks", -(-len(token_ids) // size) - fields["first_block"])
        fields.setdefault("receiver_epoch", None)
        fields.setdefault("timeout_s", TIMEOUT_S)
        call = ReserveCall(transfer_id=name, token_ids=tuple(token_ids), **fields)
        self.pool.reserve(call, lambda answer: self.answers.setdefault(name, []).append(answer))
        return self.last(name)

    def last(self, name):
        answers = self.answers.get(name)
        return answers[-1] if answers else None

    def deliver(self, name, num_blocks=4, part=None):
        """Delivers as a transport does: what the port does not admit never gets in."""
        part = part or Part.whole(self.pool.layout, num_blocks)
        port = self.pool.port
        try:
            port.admits(name, part, self.last(name).ticket)
        except TransferFailedError:
            return False
        pages = self.pool._memory.pages
        span = {"first_layer": part.first_layer, "num_layers": part.num_layers}
        port.deliver(name, part, pages.gather([0] * part.num_blocks, **span))
        return True

    def commit(self, name):
        self.commits.clear()
        self.pool.commit(name, self.commits.append)
        return self.commits


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def pool(clock):
    return make_pool("d0", hbm_blocks=8, clock=clock)


@pytest.fixture
def door(pool):
    yield Door(pool)
    pool.check()


def test_a_half_arrived_block_is_never_matched(door, pool):
    answer = door.reserve("t")
    assert (answer.accepted, len(answer.blocks), answer.tensor_parallelism) == (True, 4, 1)
    assert pool.match_whole(PROMPT).num_tokens == 0
    door.deliver("t")
    assert pool.poll() == []
    assert pool.match_whole(PROMPT).num_tokens == 0
    assert door.commit("t") == [None]
    with pool.match_whole(PROMPT) as found:
        assert found.num_tokens == 8
    assert (pool.poll(), pool.num_leased) == ([], 0)  # nobody reads an empty `private`


def test_a_commit_may_overtake_the_bytes(door, pool):
    door.reserve("t", private=b"x")
    assert door.commit("t") == []
    pool.commit("t", door.commits.append)
    door.deliver("t")
    (arrival,) = pool.poll()
    assert door.commits == [None, None]
    arrival.lease.close()


def test_late_and_repeated_messages_do_no_harm(door, pool):
    door.reserve("t", private=b"x")
    door.deliver("t")
    assert door.commit("t") == [None]
    assert door.commit("t") == [None]
    pool.abort("t", "late")
    door.deliver("t")
    assert not door.reserve("t").accepted
    (arrival,) = pool.poll()
    assert pool.peek([*PROMPT, 0]) == 8
    arrival.lease.close()
    pool.abort("never", "its reserve comes later")
    assert "aborted before" in door.reserve("never").refused_because
    assert isinstance(door.commit("never")[0], TransferFailedError)
    assert pool.num_leased == 0


def test_an_abort_ends_a_reservation_in_each_phase(door, pool):
    door.reserve("open")
    pool.abort("open", "no more")
    door.reserve("landed")
    door.deliver("landed")
    pool.poll()
    pool.abort("landed", "no more")
    door.reserve("committing")
    commits = door.commit("committing")
    pool.abort("committing", "no more")
    assert "no more" in str(commits[0])
    with pool.alloc_mem(8):
        assert door.reserve("waiting") is None
        pool.abort("waiting", "no more")
        assert door.last("waiting").refused_because == "no more"
    assert (pool.poll(), pool.num_leased, pool.num_free) == ([], 0, 8)
    door.deliver("open")
    assert pool.poll() == []


def test_memory_is_served_first_come_first_served(door, pool):
    woken = []
    pool.wake = lambda: woken.append(True)
    filler = [pool.alloc_mem(2) for _ in range(4)]
    assert door.reserve("big") is None
    assert door.reserve("small", PROMPT[:4], salt="s") is None
    filler.pop().close()
    assert woken
    pool.poll()
    assert door.last("big") is door.last("small") is None  # the first one wants 4
    assert door.reserve("late", PROMPT[:2], salt="l") is None  # 2 are free: not for this one
    assert not door.reserve("rude", PROMPT[:2], may_wait=False).accepted
    pool.abort("late", "no more")
    filler.pop().close()
    pool.poll()
    assert door.last("big").accepted and door.last("small") is None
    pool.abort("big", "no more")
    pool.poll()
    assert door.last("small").accepted
    pool.abort("small", "no more")
    for lease in filler:
        lease.close()


def test_waiting_ends_at_the_deadline(door, pool, clock):
    with pool.alloc_mem(8):
        assert door.reserve("t") is None
        assert pool.next_deadline_s == TIMEOUT_S
        clock.advance(TIMEOUT_S)
        pool.poll()
        assert "not committed in 10.0 s" in door.last("t").refused_because
    assert door.reserve("u").accepted
    clock.advance(TIMEOUT_S)
    pool.poll()
    assert (pool.num_leased, pool.next_deadline_s) == (0, None)


def test_who_may_not_wait_is_refused_at_once(door, pool):
    with pool.alloc_mem(5):
        answer = door.reserve("t", may_wait=False)
        assert (answer.accepted, answer.refused_because) == (False, "no memory for 4 blocks now")
    assert door.reserve("u", may_wait=False).accepted
    pool.abort("u", "no more")


def test_room_beside_is_asked_for_and_not_taken(door, pool):
    assert door.reserve("t", extra_blocks=5, may_wait=False).refused_because.startswith("wanted 4")
    with pool.alloc_mem(1):
        assert not door.reserve("u", extra_blocks=4, may_wait=False).accepted
        assert door.reserve("v", extra_blocks=3, may_wait=False).accepted
        assert pool.num_free == 3
    pool.abort("v", "no more")


def test_held_blocks_are_leased_and_brought_to_hbm(clock):
    pool = make_pool("d0", hbm_blocks=8, host_blocks=8, clock=clock)
    door = Door(pool)
    cache(pool, PROMPT[:6])
    pool.swap_out(2)
    answer = door.reserve("t", private=b"x")
    assert (answer.num_held_blocks, len(answer.blocks)) == (3, 1)
    assert (pool.num_free, pool.counters.blocks_swapped_in) == (4, 2)
    door.deliver("t", 1)
    door.commit("t")
    (arrival,) = pool.poll()
    assert len(arrival.lease.block_ids) == 4
    arrival.lease.close()
    pool.check()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"receiver_epoch": 2}, "d0 is in epoch 1, not 2"),
        ({"num_blocks": 3}, "3 blocks do not hold 8 tokens"),
        ({"token_ids": [], "num_blocks": 1}, "blocks without tokens"),
        ({"token_ids": list(range(20))}, "wanted 10 blocks and 0 beside, 8 in all"),
        ({"first_block": 1}, "holds 0 of 1 blocks before"),
        ({"into": "nothing"}, "nothing holds no blocks here"),
    ],
)
def test_what_can_never_be_served_is_refused(door, pool, fields, reason):
    assert reason in door.reserve("t", **fields).refused_because
    assert (pool.num_leased, pool.counters.reservations_refused) == (0, 1)


def test_blocks_alone_take_no_bytes_and_serve_their_owner_only(door, pool):
    assert door.reserve("raw", [], num_blocks=4, insert=False).accepted
    assert isinstance(door.commit("raw")[0], TransferFailedError)
    door.deliver("raw")
    pool.poll()
    assert "belongs to p0" in door.reserve("a", into="raw", sender="p1").refused_because
    assert "holds 4 blocks, wanted 5" in door.reserve("b", [*PROMPT, 9], into="raw").refused_because
    blocks = door.last("raw").blocks
    assert door.reserve("t", into="raw").blocks == blocks
    pool.abort("t", "no more")
    assert pool.num_free == 8


def test_bytes_of_another_shape_end_the_reservation(door, pool):
    door.reserve("t")
    part = Part.whole(pool.layout, 4)
    pool.port.admits("t", part, door.last("t").ticket)
    pool.port.deliver("t", part, pool._memory.pages.gather([0] * 2))
    commits = door.commit("t")
    assert isinstance(commits[0], TransferFailedError)
    assert pool.num_leased == 0


def test_a_reservation_has_landed_when_every_cell_has(clock):
    layout = dataclasses.replace(TINY, num_layers=3)
    pool = make_pool("d0", layout=layout, clock=clock)
    door = Door(pool)
    door.reserve("t", private=b"x")
    assert door.commit("t") == []
    parts = [Part(2, 2, 0, 3), Part(0, 2, 1, 2), Part(0, 2, 0, 1)]
    for part in parts:
        assert pool.poll() == []
        assert (pool.counters.blocks_received, door.commits) == (0, [])
        assert door.deliver("t", part=part)
        assert not door.deliver("t", part=part)
    (arrival,) = pool.poll()
    assert (door.commits, pool.counters.blocks_received) == ([None], 4)
    arrival.lease.close()
    pool.check()


def test_peers_that_have_gone_hold_nothing(door, pool):
    pool.peers_changed({"p0": 1, "p1": 1})
    door.reserve("old", sender="p0")
    door.reserve("stranger", PROMPT[:2], sender="p9", salt="s")
    with pool.alloc_mem(3):
        assert door.reserve("waiting", sender="p1", salt="t") is None
        pool.peers_changed({"p0": 2})
        assert "p1 epoch 1 is over" in door.last("waiting").refused_because
    assert pool.num_leased == 1  # the stranger may have joined a moment ago
    assert "p0 epoch 1 is over" in door.reserve("again", sender="p0").refused_because
    assert "p1 epoch 1 is over" in door.reserve("ghost", sender="p1").refused_because
    assert door.reserve("new", sender="p0", sender_epoch=2).accepted
    pool.close()
    assert pool.num_leased == 0


def test_an_arrival_beside_a_prefix_indexed_meanwhile_keeps_its_own_blocks(door, pool):
    door.reserve("t", private=b"x")
    cache(pool, PROMPT)
    door.deliver("t")
    door.commit("t")
    (arrival,) = pool.poll()
    assert (len(arrival.lease.block_ids), pool.num_free) == (4, 0)
    arrival.lease.close()
    assert pool.num_free == 4
    with compute(pool, [*PROMPT, 1]) as lease:
        assert lease.num_tokens == 9
