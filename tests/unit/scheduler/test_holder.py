"""What one instance is believed to hold: told, hoped, doubted, each name for one reason."""

from memserve_jax.core.types import Tier
from scheduler.holder import Holder

ONE, TWO, THREE, FOUR = b"1", b"2", b"3", b"4"


def test_what_is_told_in_one_go_and_piece_by_piece_is_the_same():
    at_once, in_pieces = Holder(), Holder()
    assert at_once.tell(Tier.HBM, [ONE, TWO, THREE]) == [ONE, TWO, THREE]
    in_pieces.hope([FOUR], 1.0)  # so that every block is looked at
    assert in_pieces.tell(Tier.HBM, [ONE, TWO, THREE]) == [THREE, TWO, ONE]
    assert list(at_once.told.items()) == list(in_pieces.told.items())
    assert at_once.tier_blocks == in_pieces.tier_blocks
    at_once.check()
    in_pieces.check()


def test_a_name_given_twice_counts_once():
    holder = Holder()
    holder.tell(Tier.HBM, [ONE, ONE])
    holder.tell(Tier.HBM, [ONE, TWO, TWO])
    assert holder.tier_blocks[Tier.HBM] == len(holder) == 2
    assert holder.untell(Tier.HBM, [ONE, ONE]) == ([ONE], 1)
    holder.check()


def test_a_hope_that_comes_true_is_no_new_block():
    holder = Holder()
    assert holder.hope([ONE, TWO], 1.0) == [TWO, ONE]
    assert holder.tell(Tier.HOST, [TWO, THREE]) == [THREE]
    assert holder.hope([TWO], 2.0) == []
    assert holder.expire(1.0) == [ONE]
    assert set(holder) == {TWO, THREE}
    holder.check()


def test_hopes_end_in_the_order_in_which_they_began():
    holder = Holder()
    holder.hope([ONE], 9.0)
    holder.hope([TWO], 3.0)
    assert holder.expire(5.0) == []
    assert holder.expire(9.0) == [ONE, TWO]
    holder.check()


def test_what_is_not_in_the_snapshot_is_given_up_at_its_end():
    holder = Holder()
    holder.tell(Tier.HBM, [ONE, TWO])
    holder.hope([THREE], 9.0)
    holder.doubt()
    assert holder.tell(Tier.DISK, [TWO, FOUR]) == [FOUR]
    assert holder.hope([ONE, TWO], 9.0) == [], "both are believed already"
    holder.check()
    assert set(holder) == {ONE, TWO, THREE, FOUR}
    assert not holder.is_followed
    assert set(holder.end_doubt()) == {ONE, THREE}
    assert holder.is_followed and set(holder) == {TWO, FOUR}
    assert holder.tier_blocks == {Tier.HBM: 0, Tier.HOST: 0, Tier.DISK: 2}
    holder.check()


def test_room_is_made_by_what_was_used_longest_ago_deepest_first():
    holder = Holder()
    holder.tell(Tier.HBM, [ONE, TWO])
    holder.tell(Tier.HOST, [TWO])
    holder.tell(Tier.HBM, [THREE, FOUR])
    holder.touch([TWO])
    assert holder.evict(2) == [ONE, FOUR]
    assert holder.tier_blocks == {Tier.HBM: 2, Tier.HOST: 1, Tier.DISK: 0}
    assert holder.num_evicted == 2
    holder.check()
    assert holder.evict(9) == [THREE, TWO]
    assert not len(holder)
    holder.check()


def test_doubted_blocks_make_room_first():
    holder = Holder()
    holder.tell(Tier.HBM, [ONE])
    holder.doubt()
    holder.tell(Tier.HBM, [TWO])
    assert holder.evict(1) == [ONE]
    assert holder.num_evicted == 0
    assert holder.end_doubt() == []
