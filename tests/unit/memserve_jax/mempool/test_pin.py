"""Pins: what is pinned stays where it is, in numbers that are bounded and told."""

import pytest

from memserve_jax.core.errors import OverloadedError
from memserve_jax.core.types import Tier
from tests.helpers.pools import cache, compute, disk_in, make_pool

SYSTEM, USER, OTHER = [1] * 4, [1] * 4 + [2] * 4, [3] * 8  # 2, 4 and 4 blocks


def held(pool, token_ids, salt=""):
    with pool.match_whole(token_ids, salt=salt) as found:
        return [address.tier for address in found.blocks]


def pinned_blocks(pool):
    return {status.tier: status.pinned_blocks for status in pool.status.tiers}


def test_pinned_blocks_are_not_evicted_and_others_are():
    pool = make_pool(hbm_blocks=8, max_pinned_blocks=4)
    cache(pool, USER)
    assert pool.pin(SYSTEM) == 2
    assert pool.num_leased == 0
    assert pool.num_available == 6
    pool.alloc_mem(6).close()
    assert held(pool, USER) == [Tier.HBM] * 2
    assert pinned_blocks(pool) == {Tier.HBM: 2}
    with compute(pool, USER) as lease:  # a match finds it, and a request may lease it besides
        assert pool.num_leased == 4
        assert pool.status.tiers[0].leased_blocks == 4
        pool.insert(USER, lease)
    assert pool.num_leased == 0
    assert pool.unpin(SYSTEM) == 2
    assert pool.num_available == 8
    pool.check()


def test_pins_hold_in_the_tier_where_the_blocks_are(tmp_path):
    pool = make_pool(hbm_blocks=4, host_blocks=2, disk=disk_in(tmp_path, 4), max_pinned_blocks=4)
    cache(pool, USER)
    pool.alloc_mem(4).close()
    assert held(pool, USER) == [Tier.HOST] * 2 + [Tier.DISK] * 2
    assert pool.pin(USER) == 4
    assert pinned_blocks(pool) == {Tier.HBM: 0, Tier.HOST: 2, Tier.DISK: 2}
    for first in range(5, 9):
        cache(pool, [first] * 8)
        pool.alloc_mem(4).close()
        pool.check()
    assert held(pool, USER) == [Tier.HOST] * 2 + [Tier.DISK] * 2
    pool.unpin(USER)
    for first in range(5, 9):
        cache(pool, [first] * 8)
        pool.alloc_mem(4).close()
    assert held(pool, USER) == []
    pool.close()


def test_too_many_are_refused_and_nothing_changes():
    pool = make_pool(hbm_blocks=8, max_pinned_blocks=3)
    cache(pool, USER)
    cache(pool, OTHER)
    assert pool.pin(SYSTEM) == 2
    with pytest.raises(OverloadedError, match="2 blocks are pinned, wanted 4 more, allowed: 3"):
        pool.pin(OTHER)
    with pytest.raises(OverloadedError):
        pool.pin(USER)
    assert pinned_blocks(pool) == {Tier.HBM: 2}
    assert pool.pin(SYSTEM) == 2  # again: no more than before
    assert pool.unpin(SYSTEM) == 2
    pool.check()


def test_pins_share_blocks_and_cover_more_when_repeated():
    pool = make_pool(hbm_blocks=8, max_pinned_blocks=4)
    cache(pool, SYSTEM)
    assert pool.pin(USER) == 2  # as much as is held
    cache(pool, USER)
    assert pool.pin(USER) == 4
    assert pool.pin(SYSTEM) == 2
    assert pool.unpin(USER) == 4
    assert pinned_blocks(pool) == {Tier.HBM: 2}
    pool.alloc_mem(6).close()
    assert held(pool, USER) == [Tier.HBM] * 2
    pool.check()


def test_delete_leaves_what_is_pinned():
    pool = make_pool(hbm_blocks=8, max_pinned_blocks=4)
    cache(pool, USER)
    pool.pin(SYSTEM)
    assert pool.delete(USER) == 2
    assert held(pool, USER) == [Tier.HBM] * 2
    assert pool.delete(SYSTEM[:2]) == pool.delete(SYSTEM) == 0
    pool.unpin(SYSTEM)
    assert pool.delete(SYSTEM) == 2
    assert pool.num_free == 8
    pool.check()


def test_salts_are_pinned_apart_and_nothing_is_pinned_where_nothing_is_held():
    pool = make_pool(hbm_blocks=8)
    cache(pool, USER, salt="a")
    assert pool.pin(USER) == pool.pin(USER, salt="b") == pool.unpin(USER) == 0
    assert pool.pin(USER, salt="a") == 4
    assert pool.pin([]) == 0
    pool.check()
    pool.close()
    assert pool.num_leased == 0
    assert pool.num_available == 8
