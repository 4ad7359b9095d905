"""LocalMemory: occupancy and the callback on release; the calls themselves are in test_pool."""

import pytest

from memserve_jax.core.types import Tier
from tests.helpers.pools import cache, make_pool

PROMPT = list(range(8))


def test_status_tells_every_tier():
    pool = make_pool(hbm_blocks=8, host_blocks=4)
    cache(pool, PROMPT)
    pool.swap_out(1)
    with pool.match(PROMPT):
        hbm, host = pool.status.tiers
    assert (hbm.tier, hbm.num_blocks, hbm.free_blocks, hbm.leased_blocks, hbm.indexed_blocks) == (
        Tier.HBM,
        8,
        5,
        3,
        3,
    )
    assert (host.tier, host.free_blocks, host.leased_blocks, host.indexed_blocks) == (
        Tier.HOST,
        3,
        0,
        1,
    )


def test_closing_and_deleting_say_that_memory_was_released():
    memory = make_pool()._memory
    told = []
    memory.released = lambda: told.append(memory.num_available)
    lease = memory.alloc(4, Tier.HBM)
    memory.insert(PROMPT, lease, "")
    lease.close()
    assert told == [8]
    assert memory.delete(PROMPT, "") == 4
    assert told == [8, 8]
    assert memory.delete(PROMPT, "") == 0
    assert len(told) == 2


def test_addresses_are_made_once():
    memory = make_pool()._memory
    first = memory.alloc(3, Tier.HBM)
    again = first.share()
    assert all(a is b for a, b in zip(first.blocks, again.blocks, strict=True))
    assert {(at.instance, at.epoch, at.tier) for at in first.blocks} == {("p0", 1, Tier.HBM)}


def test_a_negative_number_of_blocks_is_refused():
    with pytest.raises(ValueError, match="num_blocks: got -1"):
        make_pool().alloc_mem(-1)
