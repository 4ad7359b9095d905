"""Moves between tiers where it is tight: the right blocks go, with the right bytes."""

import jax
import numpy as np
import pytest

from memserve_jax.core.types import Tier
from memserve_jax.mempool import swap
from tests.helpers.pools import cache, kv_of, make_pool, read_kv

OLD, NEW = [1] * 8, [2] * 8  # 4 blocks of 2 each


def tiers(pool, token_ids):
    with pool.match_whole(token_ids) as found:
        np.testing.assert_array_equal(
            read_kv(pool, found), kv_of(pool.layout, token_ids)[: len(found)]
        )
        return [address.tier for address in found.blocks]


def test_a_host_block_taken_twice_in_one_eviction_holds_the_later_bytes():
    pool = make_pool(hbm_blocks=4, host_blocks=1)
    cache(pool, OLD)
    pool.alloc_mem(4).close()  # each block in turn takes the only HOST block
    pool.check()
    assert tiers(pool, OLD) == [Tier.HOST]
    assert pool.counters.blocks_dropped == 3


def test_host_keeps_what_was_used_last():
    pool = make_pool(hbm_blocks=8, host_blocks=4)
    cache(pool, OLD)
    cache(pool, NEW)
    pool.swap_out(4)  # OLD
    pool.match_whole(OLD).close()  # used last from now on
    pool.alloc_mem(8).close()  # NEW must leave HBM, and HOST has better
    assert tiers(pool, NEW) == []
    assert tiers(pool, OLD) == [Tier.HOST] * 4
    pool.check()


def test_a_second_copy_makes_leaving_hbm_free():
    pool = make_pool(hbm_blocks=8, host_blocks=4)
    cache(pool, OLD)
    pool.swap_out(2)
    with pool.match_whole(OLD) as lease:
        pool.swap_in(lease)
    copied = pool.counters.blocks_swapped_out
    pool.alloc_mem(6).close()
    assert tiers(pool, OLD) == [Tier.HBM] * 2 + [Tier.HOST] * 2
    assert pool.swap_out(2) == 2
    assert pool.counters.blocks_swapped_out == copied + 4
    assert pool.status.tiers[1].free_blocks == 0
    pool.check()


def test_swapping_more_than_one_staging_piece(monkeypatch):
    monkeypatch.setattr(swap, "MAX_STAGED_BLOCKS", 2)
    pool = make_pool(hbm_blocks=8, host_blocks=8)
    cache(pool, OLD)
    assert pool.swap_out(9) == 4
    assert tiers(pool, OLD) == [Tier.HOST] * 4
    with pool.match_whole(OLD) as lease:
        assert pool.swap_in(lease) == 4
    assert tiers(pool, OLD) == [Tier.HBM] * 4
    pool.check()


def test_eviction_from_host_makes_room_for_leased_host_blocks():
    pool = make_pool(hbm_blocks=8, host_blocks=4)
    cache(pool, OLD)
    pool.swap_out(4)
    with pool.alloc_mem(3, Tier.HOST):
        assert tiers(pool, OLD) == [Tier.HOST]
        assert pool.swap_out(1) == 0
    pool.check()


def test_blocks_swapped_in_after_their_prefix_was_deleted_stay_with_the_lease():
    pool = make_pool(hbm_blocks=8, host_blocks=4)
    cache(pool, OLD)
    pool.swap_out(4)
    with pool.match_whole(OLD) as lease:
        pool.delete(OLD)
        assert pool.swap_in(lease) == 4
        np.testing.assert_array_equal(read_kv(pool, lease), kv_of(pool.layout, OLD))
        pool.check()
    assert pool.num_free == 8


def test_a_block_joins_hbm_only_behind_its_prefix():
    pool = make_pool(hbm_blocks=8, host_blocks=8)
    kept, private = pool.alloc_mem(1, Tier.HOST), pool.alloc_mem(2, Tier.HOST)
    pool._memory.host.put([at.block for at in kept.blocks], packed(pool, OLD[:2]))
    pool._memory.host.put([at.block for at in private.blocks], packed(pool, OLD[:4]))
    pool.insert(OLD[:2], kept)
    assert pool.insert(OLD[:4], private) == 2
    assert pool.swap_in(private) == 2  # its first block is its own; the index's stays in HOST
    pool.check()
    assert tiers(pool, OLD) == [Tier.HOST] * 2
    kept.close()
    private.close()
    pool.check()


def packed(pool, token_ids):
    return jax.device_put(kv_of(pool.layout, token_ids), pool.packed_sharding)


@pytest.mark.parametrize("host_blocks", [0, 2])
def test_closed_leases_cannot_be_swapped(host_blocks):
    pool = make_pool(host_blocks=host_blocks)
    lease = pool.alloc_mem(1)
    lease.close()
    with pytest.raises(ValueError, match="closed"):
        pool.swap_in(lease)
