"""MemPool: the nine calls, one by one."""

import jax
import numpy as np
import pytest

from memserve_jax.core.errors import OutOfBlocksError
from memserve_jax.core.types import Tier
from tests.helpers.pools import cache, compute, kv_of, make_pool, read_kv

PROMPT = list(range(9))  # 4 whole blocks of 2, and a tail of 1


def assert_holds(pool, lease, token_ids, salt=""):
    np.testing.assert_array_equal(
        read_kv(pool, lease), kv_of(pool.layout, token_ids, salt)[: len(lease)]
    )


def test_a_prompt_is_found_after_its_insert_and_not_before():
    pool = make_pool()
    lease = compute(pool, PROMPT)
    assert len(lease) == 5
    assert len(pool.match(PROMPT)) == 0
    assert pool.insert(PROMPT, lease) == 8
    assert pool.insert(PROMPT, lease) == 0
    lease.close()
    assert (pool.num_free, pool.num_available, pool.num_leased) == (4, 8, 0)
    with pool.match(PROMPT) as found:
        assert (len(found), found.num_tokens, pool.num_leased) == (4, 8, 4)
        assert_holds(pool, found, PROMPT)
    pool.check()


def test_match_leaves_the_last_token_to_be_computed():
    pool = make_pool()
    cache(pool, PROMPT)
    assert pool.peek(PROMPT[:8]) == 6
    with pool.match(PROMPT[:8]) as found, pool.match_whole(PROMPT[:8]) as whole:
        assert (found.num_tokens, whole.num_tokens) == (6, 8)
    assert len(pool.match([])) == len(pool.match([0])) == 0


def test_salts_do_not_see_each_other():
    pool = make_pool(hbm_blocks=16)
    cache(pool, PROMPT, salt="a")
    assert pool.peek(PROMPT) == 0
    assert pool.peek(PROMPT, salt="b") == 0
    assert cache(pool, PROMPT, salt="b") == 8
    with pool.match(PROMPT, salt="b") as found:
        assert_holds(pool, found, PROMPT, "b")


def test_leased_blocks_are_not_evicted():
    pool = make_pool(hbm_blocks=8)
    cache(pool, PROMPT)
    with pool.match(PROMPT) as found:
        with pytest.raises(OutOfBlocksError, match="hbm: wanted 5 blocks, 4 free"):
            pool.alloc_mem(5)
        pool.alloc_mem(4).close()
        assert_holds(pool, found, PROMPT)
    pool.alloc_mem(8).close()
    assert pool.peek(PROMPT) == 0
    pool.check()


def test_the_end_of_the_oldest_prefix_goes_first():
    pool = make_pool(hbm_blocks=8)
    old, new = [1] * 8 + [0], [2] * 8 + [0]
    cache(pool, old[:-1])
    cache(pool, new[:-1])
    pool.match_whole(old).close()
    pool.alloc_mem(1).close()
    assert (pool.peek(old), pool.peek(new)) == (8, 6)
    pool.alloc_mem(5).close()
    assert (pool.peek(old), pool.peek(new)) == (6, 0)
    pool.check()


def test_the_index_keeps_its_own_block_and_the_lease_its_private_one():
    pool = make_pool(hbm_blocks=16)
    first, second = compute(pool, PROMPT), compute(pool, [*PROMPT, 9, 10])
    assert pool.insert(PROMPT, first) == 8
    assert pool.insert([*PROMPT, 9, 10], second) == 2
    first.close()
    pool.check()
    assert_holds(pool, second, [*PROMPT, 9, 10])
    # 4 indexed blocks lie before the one that `second` brought: they stay as long as it does.
    assert pool.num_available == 16 - 4 - len(second)
    second.close()
    assert (pool.num_leased, pool.num_free) == (0, 16 - 5)
    pool.check()


def test_delete_takes_what_only_this_prompt_uses():
    pool = make_pool(hbm_blocks=16)
    cache(pool, [0, 0, 1, 1, 2, 2])
    cache(pool, [0, 0, 3, 3])
    assert pool.delete([0, 0, 4, 4]) == 0
    assert pool.delete([0, 0, 1, 1]) == 2
    assert pool.peek([0, 0, 1, 1, 2, 2, 0]) == 2
    assert pool.delete([0, 0, 3, 3], salt="x") == 0
    assert pool.delete([0, 0, 3, 3]) == 2
    assert pool.num_free == 16
    pool.check()


def test_delete_leaves_leased_blocks_to_their_leases():
    pool = make_pool()
    cache(pool, PROMPT)
    with pool.match(PROMPT) as found:
        assert pool.delete(PROMPT) == 4
        assert pool.peek(PROMPT) == 0
        assert pool.num_free == 4
        assert_holds(pool, found, PROMPT)
        pool.check()
    assert pool.num_free == 8


def test_swap_out_and_in_keep_the_bytes():
    pool = make_pool(hbm_blocks=8, host_blocks=8)
    cache(pool, PROMPT)
    assert pool.swap_out(3) == 3
    with pool.match(PROMPT) as found:
        assert [address.tier for address in found.blocks] == [Tier.HBM] + [Tier.HOST] * 3
        with pytest.raises(ValueError, match="not in HBM"):
            _ = found.block_ids
        assert_holds(pool, found, PROMPT)
        filler = pool.alloc_mem(7)
        with pytest.raises(OutOfBlocksError):
            pool.swap_in(found)
        pool.check()
        filler.close()
        assert pool.swap_in(found) == 3
        assert pool.swap_in(found) == 0
        assert len(found.block_ids) == 4
        assert_holds(pool, found, PROMPT)
        pool.check()
    counters = pool.counters
    assert (counters.blocks_swapped_out, counters.blocks_swapped_in) == (3, 3)
    pool.check()


def test_two_leases_swap_the_same_blocks_in_once():
    pool = make_pool(hbm_blocks=8, host_blocks=8)
    cache(pool, PROMPT)
    pool.swap_out(4)
    with pool.match(PROMPT) as one, pool.match(PROMPT) as two:
        pool.swap_in(one)
        assert pool.swap_in(two) == 4
        assert one.blocks == two.blocks
        pool.check()
    assert pool.counters.blocks_swapped_in == 4


def test_eviction_goes_to_host_and_then_away():
    pool = make_pool(hbm_blocks=4, host_blocks=4)
    prompts = [[i] * 8 for i in range(3)]
    for prompt in prompts:
        cache(pool, prompt)
        pool.check()
    held = []
    for prompt in prompts:
        with pool.match_whole(prompt) as found:
            held.append([address.tier for address in found.blocks])
            assert_holds(pool, found, prompt)
    assert held == [[], [Tier.HOST] * 4, [Tier.HBM] * 4]
    assert pool.counters.blocks_dropped == 4


def test_without_host_room_swap_out_moves_nothing():
    pool = make_pool()
    cache(pool, PROMPT)
    assert pool.swap_out(4) == 0
    assert pool.peek(PROMPT) == 8
    pool.check()


def test_host_blocks_can_be_allocated_and_indexed():
    pool = make_pool(host_blocks=4)
    lease = pool.alloc_mem(4, Tier.HOST)
    pool._memory.host.put([a.block for a in lease.blocks], _packed(pool, PROMPT[:8]))
    assert pool.insert(PROMPT[:8], lease) == 8
    lease.close()
    with pool.match(PROMPT) as found:
        assert pool.swap_in(found) == 4
        assert_holds(pool, found, PROMPT)
    with pytest.raises(ValueError, match="tier"):
        make_pool().alloc_mem(1, Tier.HOST)
    pool.check()


def _packed(pool, token_ids):
    return jax.device_put(kv_of(pool.layout, token_ids), pool.packed_sharding)


def test_insert_refuses_what_it_cannot_index():
    pool = make_pool(host_blocks=4)
    lease = pool.alloc_mem(2)
    with pytest.raises(ValueError, match="at least 3"):
        pool.insert(PROMPT[:6], lease)
    assert pool.insert([1], lease) == 0
    pool.insert([1, 1, 2, 2], lease)
    with pytest.raises(ValueError, match="another prefix"):
        pool.insert([2, 2, 1, 1], lease)
    lease.close()
    with pytest.raises(ValueError, match="closed"):
        pool.insert([1, 1], lease)
    pool.check()


def test_warm_up_compiles_every_copy():
    pool = make_pool(hbm_blocks=8)
    seen = []
    pool.warm_up(5, lambda done, total, what: seen.append((done, total, what)))
    assert seen[-1] == (4, 4, "copies of 8 blocks")
    compiled = pool.counters.compiled_shapes
    cache(pool, PROMPT)
    assert pool.counters.compiled_shapes == compiled == 8
