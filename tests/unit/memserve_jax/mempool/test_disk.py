"""The DISK tier of a pool: what left memory comes back, or is a miss; never anything else."""

import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from memserve_jax.core.types import Tier
from memserve_jax.mempool import disk as disk_module
from memserve_jax.mempool.disk_folder import DiskFolder
from tests.helpers.pools import cache, compute, disk_in, files_in, kv_of, make_pool, read_kv

OLD, NEW = [1] * 8, [2] * 8  # 4 blocks of 2 each


def tiers(pool, token_ids, salt=""):
    with pool.match_whole(token_ids, salt=salt) as found:
        np.testing.assert_array_equal(
            read_kv(pool, found), kv_of(pool.layout, token_ids, salt)[: len(found)]
        )
        return [address.tier for address in found.blocks]


def settle(pool):
    """Waits until what was to be written is on DISK."""
    pool._memory.disk._writer.submit(lambda: None).result()
    pool.poll()
    pool.check()


def evict_all(pool):
    pool.alloc_mem(pool.num_hbm_blocks).close()
    settle(pool)


def test_what_leaves_hbm_goes_to_disk_and_comes_back(tmp_path):
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8))
    cache(pool, OLD)
    evict_all(pool)
    assert tiers(pool, OLD) == [Tier.DISK] * 4
    assert len(files_in(tmp_path)) == 4
    with pool.match_whole(OLD) as lease:
        assert pool.swap_in(lease) == 4
        assert [address.tier for address in lease.blocks] == [Tier.HBM] * 4
        np.testing.assert_array_equal(read_kv(pool, lease), kv_of(pool.layout, OLD))
        assert pool.insert(OLD, lease) == 8
    assert tiers(pool, OLD) == [Tier.HBM] * 4
    assert pool.counters.disk_blocks_written == 4
    evict_all(pool)  # they are on DISK already
    assert pool.counters.disk_blocks_written == 4
    assert pool.counters.blocks_dropped == 0
    assert pool.num_leased == 0
    pool.close()


def test_three_tiers_one_after_another(tmp_path):
    pool = make_pool(hbm_blocks=4, host_blocks=2, disk=disk_in(tmp_path, 8))
    cache(pool, OLD)
    evict_all(pool)
    assert tiers(pool, OLD) == [Tier.HOST] * 2 + [Tier.DISK] * 2
    hbm, host, disk = pool.status.tiers
    assert (hbm.indexed_blocks, host.indexed_blocks, disk.indexed_blocks) == (0, 2, 4)
    assert (disk.tier, disk.num_blocks, disk.free_blocks) == (Tier.DISK, 8, 4)
    with compute(pool, OLD) as lease:
        np.testing.assert_array_equal(read_kv(pool, lease), kv_of(pool.layout, OLD))
    pool.check()
    pool.close()


def test_disk_holds_its_budget_and_what_was_used_last(tmp_path):
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 6))
    cache(pool, OLD)
    evict_all(pool)
    cache(pool, NEW)
    evict_all(pool)
    assert tiers(pool, NEW) == [Tier.DISK] * 4
    assert tiers(pool, OLD) == [Tier.DISK] * 2  # the end of a prefix goes first
    assert len(files_in(tmp_path)) == 6
    pool.close()


def test_a_restart_finds_what_left_memory_with_what_comes_before_it(tmp_path):
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8))
    cache(pool, OLD)
    pool.alloc_mem(1).close()  # the last block leaves, the others stay
    assert tiers(pool, OLD) == [Tier.HBM] * 3 + [Tier.DISK]
    pool.close()
    again = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8), epoch=2)
    assert tiers(again, OLD) == [Tier.DISK] * 4
    again.close()


def test_a_restart_finds_what_was_stored_and_nobody_elses(tmp_path):
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8))
    cache(pool, OLD, salt="a")
    evict_all(pool)
    pool.close()
    again = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8), epoch=2)
    assert tiers(again, OLD, "a") == [Tier.DISK] * 4
    assert tiers(again, OLD, "b") == tiers(again, OLD) == []
    assert again.counters.disk_blocks_refused == 0
    again.close()
    smaller = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 3), epoch=3)
    assert tiers(smaller, OLD, "a") == [Tier.DISK] * 3
    assert len(files_in(tmp_path)) == 3
    smaller.close()
    other = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8, model="other"), epoch=4)
    assert tiers(other, OLD, "a") == []
    assert other.counters.disk_blocks_refused == 3
    assert files_in(tmp_path) == []
    other.close()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another block": lambda path: os.replace(
        next(other for other in sorted(path.parent.iterdir()) if other != path), path
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_miss(tmp_path, damage):
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8))
    cache(pool, OLD)
    evict_all(pool)
    with pool.match_whole(OLD) as lease:
        second = pool._memory.disk._names[lease.blocks[1].block]
    path = next(path for path in files_in(tmp_path) if path.name == second.file)
    DAMAGES[damage](path)
    with pool.match_whole(OLD) as lease:
        assert len(lease) == 4
        num_left = pool.swap_in(lease)
        assert num_left == len(lease) <= 1
        assert lease.num_tokens == 2 * num_left
        np.testing.assert_array_equal(read_kv(pool, lease), kv_of(pool.layout, OLD)[:num_left])
    assert pool.counters.disk_blocks_refused == 1
    assert len(tiers(pool, OLD)) <= 1
    settle(pool)
    cache(pool, OLD)
    assert tiers(pool, OLD) == [Tier.HBM] * 4
    assert pool.num_leased == 0
    pool.close()


def test_a_full_disk_is_said_once_and_nothing_more_is_written(tmp_path, monkeypatch, caplog):
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8))
    cache(pool, OLD)
    evict_all(pool)

    def full(self, block, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DiskFolder, "write", full)
    cache(pool, NEW)
    evict_all(pool)
    monkeypatch.undo()
    assert tiers(pool, NEW) == []
    cache(pool, NEW)
    evict_all(pool)
    assert tiers(pool, NEW) == []
    assert tiers(pool, OLD) == [Tier.DISK] * 4  # what is there can still be read
    assert [r.message for r in caplog.records if "No space" in r.message] == [
        "DISK tier: nothing more is written: [Errno 28] No space left on device"
    ]
    assert pool.counters.disk_blocks_skipped > 0
    pool.close()


def test_a_folder_that_cannot_be_made_is_no_tier_and_one_line(tmp_path, caplog):
    (tmp_path / "p0").write_text("in the way")
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path / "p0", 8))
    cache(pool, OLD)
    pool.alloc_mem(4).close()
    assert [status.tier for status in pool.status.tiers] == [Tier.HBM]
    assert tiers(pool, OLD) == []
    assert len([r for r in caplog.records if "no DISK tier" in r.message]) == 1
    pool.check()
    pool.close()


def test_a_disk_that_is_behind_loses_blocks_instead_of_time(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_module, "MAX_PENDING_BYTES", 0)
    monkeypatch.setattr(disk_module, "MIN_PENDING_BLOCKS", 2)
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8))
    hold = stall(pool)
    cache(pool, OLD)
    pool.alloc_mem(4).close()
    assert pool.counters.disk_blocks_skipped == 2
    assert tiers(pool, OLD) == [Tier.DISK]  # the first block, and the last one
    hold.release()
    settle(pool)
    pool.close()


def test_blocks_on_their_way_to_disk_can_be_read(tmp_path):
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8))
    hold = stall(pool)
    cache(pool, OLD)
    pool.alloc_mem(4).close()
    assert files_in(tmp_path) == []
    assert tiers(pool, OLD) == [Tier.DISK] * 4
    hold.release()
    settle(pool)
    assert len(files_in(tmp_path)) == 4
    assert tiers(pool, OLD) == [Tier.DISK] * 4
    pool.close()


def stall(pool):
    """Keeps the writer from writing until the semaphore it returns is released."""
    hold = threading.Semaphore(0)
    pool._memory.disk._writer.submit(hold.acquire)
    return hold


def test_delete_reaches_disk(tmp_path):
    pool = make_pool(hbm_blocks=8, disk=disk_in(tmp_path, 16))
    longer, sibling = [*OLD, 3, 3], OLD[:4] + [5] * 4
    for prompt in (longer, sibling):
        cache(pool, prompt)
        evict_all(pool)
    assert pool.delete(OLD) == 3  # its last block, what follows, and what only they use
    settle(pool)
    assert tiers(pool, longer) == [Tier.DISK] * 2
    assert tiers(pool, sibling) == [Tier.DISK] * 4
    cache(pool, sibling)
    assert pool.delete(sibling) == 8
    settle(pool)
    assert files_in(tmp_path) == []
    assert tiers(pool, sibling) == []
    pool.close()


def test_delete_reaches_what_follows_memory_on_disk(tmp_path):
    pool = make_pool(hbm_blocks=8, disk=disk_in(tmp_path, 16))
    cache(pool, OLD)
    evict_all(pool)
    cache(pool, OLD[:4])
    assert tiers(pool, OLD) == [Tier.HBM] * 2 + [Tier.DISK] * 2
    assert pool.delete(OLD[:2]) == 6
    assert tiers(pool, OLD) == []
    pool.close()


def test_insert_and_alloc_know_no_disk(tmp_path):
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8))
    with pytest.raises(ValueError, match="tier: got disk, allowed: hbm"):
        pool.alloc_mem(1, Tier.DISK)
    cache(pool, OLD)
    evict_all(pool)
    with pool.match_whole(OLD) as lease, pytest.raises(ValueError, match="swap it in"):
        pool.insert(OLD, lease)
    pool.close()


KILLED = """
import os, signal, sys, pathlib
from tests.helpers.pools import cache, disk_in, make_pool
pool = make_pool(hbm_blocks=4, disk=disk_in(pathlib.Path(sys.argv[1]), 8))
disk = pool._memory.disk
write = disk._folder.write
def die_half_way(block, content):
    if disk.num_written == 2:
        part = disk._folder._blocks / f"{block.file}.part"
        part.write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(block, content)
disk._folder.write = die_half_way
cache(pool, [1] * 8)
pool.alloc_mem(4).close()
disk._writer.submit(lambda: None).result()
"""


def test_a_kill_half_way_through_a_write_costs_that_block(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, check=False
    )
    assert ended.returncode == -9, ended.stderr.decode()
    assert len(list(tmp_path.rglob("*.part"))) == 1
    pool = make_pool(hbm_blocks=4, disk=disk_in(tmp_path, 8), epoch=2)
    assert len(files_in(tmp_path)) == 2
    assert list(tmp_path.rglob("*.part")) == []
    assert tiers(pool, OLD) == [Tier.DISK]  # the first block, and the last one
    pool.check()
    pool.close()
