"""What is in memory when an instance ends gently is there in its next life."""

import numpy as np
import pytest

from memserve_jax.core.types import Tier
from memserve_jax.mempool import disk as disk_module
from tests.helpers.pools import cache, disk_in, files_in, kv_of, make_pool, read_kv

OLD, NEW = [1] * 8, [2] * 8  # 4 blocks of 2 each


def flush(pool, *, most_calls=1):
    num_calls = 1
    while not pool.flush():
        num_calls += 1
        pool._memory.disk._writer.submit(lambda: None).result()  # it has caught up
    assert num_calls <= most_calls
    pool.check()


def held(pool, token_ids):
    with pool.match_whole(token_ids) as found:
        np.testing.assert_array_equal(
            read_kv(pool, found), kv_of(pool.layout, token_ids)[: len(found)]
        )
        return [address.tier for address in found.blocks]


@pytest.mark.parametrize("host_blocks", [0, 4])
def test_a_next_life_finds_all_that_was_in_memory(tmp_path, host_blocks):
    pool = make_pool(hbm_blocks=8, host_blocks=host_blocks, disk=disk_in(tmp_path, 8))
    cache(pool, OLD)
    cache(pool, NEW)
    if host_blocks:
        assert pool.swap_out(4) == 4  # OLD
    flush(pool)
    assert Tier.DISK not in held(pool, OLD) + held(pool, NEW)  # nothing has moved
    assert pool.num_leased == 0
    pool.close()
    pool = make_pool(epoch=2, hbm_blocks=8, disk=disk_in(tmp_path, 8))
    assert held(pool, OLD) == held(pool, NEW) == [Tier.DISK] * 4
    assert pool.counters.disk_blocks_refused == 0
    pool.close()


def test_what_is_there_is_not_written_again(tmp_path):
    pool = make_pool(hbm_blocks=8, disk=disk_in(tmp_path, 8))
    cache(pool, OLD)
    flush(pool)
    cache(pool, NEW)
    flush(pool)
    pool.close()
    assert pool.counters.disk_blocks_written == 8


@pytest.mark.parametrize("num_places", [3, 5])  # of the next life, which dates the files
def test_a_small_disk_keeps_what_was_used_last(tmp_path, num_places):
    pool = make_pool(hbm_blocks=8, disk=disk_in(tmp_path, 5))
    cache(pool, NEW)
    cache(pool, OLD)
    pool.match_whole(NEW).close()
    flush(pool)
    pool.close()
    assert pool.counters.disk_blocks_written == 5
    smaller = make_pool(epoch=2, hbm_blocks=8, disk=disk_in(tmp_path, num_places))
    assert held(smaller, NEW) == [Tier.DISK] * min(num_places, 4)
    assert held(smaller, OLD) == [Tier.DISK] * max(num_places - 4, 0)
    assert len(files_in(tmp_path)) == num_places
    smaller.close()


def test_a_disk_that_is_behind_takes_the_rest_later(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_module, "MAX_PENDING_BYTES", 0)
    monkeypatch.setattr(disk_module, "MIN_PENDING_BLOCKS", 2)
    pool = make_pool(hbm_blocks=8, disk=disk_in(tmp_path, 8))
    cache(pool, OLD)
    cache(pool, NEW)
    flush(pool, most_calls=4)
    pool.close()
    assert len(files_in(tmp_path)) == 8


def test_a_prefix_that_has_gone_meanwhile_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_module, "MAX_PENDING_BYTES", 0)
    monkeypatch.setattr(disk_module, "MIN_PENDING_BLOCKS", 4)
    pool = make_pool(hbm_blocks=8, disk=disk_in(tmp_path, 8))
    cache(pool, OLD)
    cache(pool, NEW)
    assert not pool.flush()
    pool.delete(OLD)
    flush(pool, most_calls=2)
    pool.close()
    assert len(files_in(tmp_path)) == 4


def test_without_a_disk_there_is_nothing_to_do():
    pool = make_pool(hbm_blocks=8)
    cache(pool, OLD)
    assert pool.flush()
    pool.close()


def test_a_disk_that_fails_is_not_waited_for(tmp_path, monkeypatch):
    pool = make_pool(hbm_blocks=8, disk=disk_in(tmp_path, 8))
    cache(pool, OLD)
    monkeypatch.setattr(pool._memory.disk, "_failure", OSError("full"))
    assert pool.flush()
    pool.close()
    assert not files_in(tmp_path)
