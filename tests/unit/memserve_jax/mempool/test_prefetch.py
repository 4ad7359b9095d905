"""Prefetches: hits come to HBM by themselves, and hold nothing while they do."""

import threading

import numpy as np

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.types import Tier
from memserve_jax.mempool import prefetch as prefetch_module
from tests.helpers.pools import cache, disk_in, files_in, kv_of, make_pool, read_kv

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9]  # 4 whole blocks of 2
PATIENCE_S = 60.0


def stored(path, *, hbm_blocks=8, host_blocks=0, **options):
    """A pool that holds PROMPT, on DISK alone."""
    pool = make_pool(
        hbm_blocks=hbm_blocks, host_blocks=host_blocks, disk=disk_in(path, 8), **options
    )
    cache(pool, PROMPT)
    hosts = [pool.alloc_mem(host_blocks, Tier.HOST)] if host_blocks else []
    pool.alloc_mem(hbm_blocks).close()
    for lease in hosts:
        lease.close()
    pool._memory.disk._writer.submit(lambda: None).result()
    assert tiers(pool) == [Tier.DISK] * 4
    return pool


def tiers(pool):
    with pool.match_whole(PROMPT) as found:
        np.testing.assert_array_equal(
            read_kv(pool, found), kv_of(pool.layout, PROMPT)[: len(found)]
        )
        return [address.tier for address in found.blocks]


def finish(pool, prefetch):
    woken = threading.Event()
    pool.wake = woken.set
    while not prefetch.is_done:
        woken.clear()
        pool.poll()
        pool.check()
        assert prefetch.is_done or woken.wait(PATIENCE_S)


def test_disk_hits_come_to_hbm_unleased(tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch_module, "READ_BLOCKS", 2)
    pool = stored(tmp_path)
    prefetch = pool.prefetch(PROMPT, timeout_s=1.0)
    assert (prefetch.num_wanted, prefetch.is_done) == (4, False)
    finish(pool, prefetch)
    assert prefetch.num_blocks == pool.counters.blocks_prefetched == 4
    assert tiers(pool) == [Tier.HBM] * 4
    assert pool.num_leased == 0
    assert pool.next_deadline_s is None
    pool.close()


def test_host_hits_are_on_their_way_at_once():
    pool = make_pool(hbm_blocks=8, host_blocks=8)
    cache(pool, PROMPT)
    pool.swap_out(3)
    prefetch = pool.prefetch(PROMPT, timeout_s=1.0)
    assert prefetch.is_done
    assert prefetch.num_blocks == pool.counters.blocks_prefetched == 3
    assert tiers(pool) == [Tier.HBM] * 4
    assert pool.num_leased == 0


def test_nothing_to_bring_is_done_at_once(tmp_path):
    pool = make_pool(disk=disk_in(tmp_path, 8))
    assert pool.prefetch(PROMPT, timeout_s=1.0).is_done
    cache(pool, PROMPT)
    assert pool.prefetch(PROMPT, timeout_s=1.0).is_done
    assert pool.counters.blocks_prefetched == 0
    pool.close()


def test_the_last_token_is_left_to_be_computed(tmp_path):
    pool = stored(tmp_path)
    prefetch = pool.prefetch(PROMPT[:8], timeout_s=1.0)
    finish(pool, prefetch)
    assert prefetch.num_blocks == 3
    pool.close()


def test_where_hbm_is_full_it_comes_to_host(tmp_path):
    pool = stored(tmp_path, host_blocks=4)
    with pool.alloc_mem(8):
        prefetch = pool.prefetch(PROMPT, timeout_s=1.0)
        finish(pool, prefetch)
        assert tiers(pool) == [Tier.HOST] * 4
    again = pool.prefetch(PROMPT, timeout_s=1.0)
    assert again.is_done
    assert tiers(pool) == [Tier.HBM] * 4
    pool.close()


def test_where_nothing_has_room_it_ends(tmp_path):
    pool = stored(tmp_path)
    with pool.alloc_mem(8):
        prefetch = pool.prefetch(PROMPT, timeout_s=1.0)
        finish(pool, prefetch)
        assert prefetch.num_blocks == 0
    assert tiers(pool) == [Tier.DISK] * 4
    pool.close()


def test_deadlines_and_cancels_end_it_and_what_comes_later_is_dropped(tmp_path):
    clock = ManualClock()
    pool = stored(tmp_path, clock=clock)
    hold = threading.Semaphore(0)
    for _ in range(4):
        pool._memory.disk._readers.submit(hold.acquire)
    late, unwanted = pool.prefetch(PROMPT, timeout_s=1.0), pool.prefetch(PROMPT, timeout_s=9.0)
    assert pool.next_deadline_s == 1.0
    unwanted.cancel()
    clock.advance(1.0)
    pool.poll()
    assert late.is_done
    assert pool.num_leased == 0
    pool.check()
    hold.release(4)
    pool._memory.disk._readers.shutdown()
    pool.poll()
    assert tiers_without_reading(pool) == [Tier.DISK] * 4
    pool.check()
    pool.close()


def tiers_without_reading(pool):
    with pool.match_whole(PROMPT) as found:
        return [address.tier for address in found.blocks]


def test_a_corrupt_file_ends_it_before_its_block(tmp_path):
    pool = stored(tmp_path)
    with pool.match_whole(PROMPT) as lease:
        third = pool._memory.disk._names[lease.blocks[2].block]
    path = next(path for path in files_in(tmp_path) if path.name == third.file)
    path.write_bytes(path.read_bytes()[::-1])
    prefetch = pool.prefetch(PROMPT, timeout_s=1.0)
    finish(pool, prefetch)
    assert prefetch.num_blocks == 2
    assert tiers(pool) == [Tier.HBM] * 2
    assert pool.counters.disk_blocks_refused == 1
    pool.close()


def test_a_prefix_that_left_meanwhile_takes_the_rest_with_it(tmp_path):
    pool = stored(tmp_path)
    cache(pool, PROMPT[:4])
    prefetch = pool.prefetch(PROMPT, timeout_s=1.0)
    pool.delete(PROMPT[:4])
    finish(pool, prefetch)
    assert prefetch.num_blocks == 0
    assert tiers_without_reading(pool) == []
    pool.close()


def test_closing_the_pool_ends_it(tmp_path):
    pool = stored(tmp_path)
    prefetch = pool.prefetch(PROMPT, timeout_s=1.0)
    pool.close()
    assert prefetch.is_done
    assert pool.num_leased == 0
    pool.check()
