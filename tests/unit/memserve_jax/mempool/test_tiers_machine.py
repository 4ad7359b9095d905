"""One pool, three tiers, pins, restarts and bad files: no block leaks, no byte is wrong.

The model is what a user knows: which sequences are active, what was ever inserted, what is
pinned. KV follows from the prefix, so whatever `match` finds can be checked without an index.
What lies where depends on how fast threads are, so no rule's draws depend on that.
"""

import pathlib
import shutil
import tempfile

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import OutOfBlocksError, OverloadedError
from memserve_jax.core.types import Tier
from tests.helpers.pools import compute, disk_in, files_in, kv_of, make_pool, read_kv

TIMEOUT_S = 5.0
PROMPTS = st.builds(
    lambda first, length: ([first] * 5 + [1 - first] * 6)[:length],
    st.integers(0, 1),
    st.sampled_from([11, 10, 9, 8, 7, 5, 4, 3, 1]),
)
SALTS = st.sampled_from(["", "tenant"])
INDEX = st.integers(0, 99)  # of something there may be none of
DAMAGES = st.sampled_from(["flip", "cut", "grow", "remove", "exchange"])


def whole(token_ids):
    """The tokens of whole blocks."""
    return list(token_ids[: len(token_ids) // 2 * 2])


class TiersMachine(RuleBasedStateMachine):
    """Rules an engine, an operator and a bad disk may play; `check()` after each."""

    def __init__(self):
        super().__init__()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="memserve-tiers-"))
        self.clock = ManualClock()
        self.active = []  # (lease, token_ids, salt), written whole
        self.inserted = set()  # (salt, prefix), ever
        self.pins = {}  # (salt, prefix): blocks
        self.prefetches = []
        self.epoch = 0
        self.pool = None

    @initialize(
        hbm=st.sampled_from([6, 5, 8]),
        host=st.sampled_from([3, 0, 5]),
        disk=st.sampled_from([8, 2, 4, 30]),
    )
    def start(self, hbm, host, disk):
        self.sizes = {"hbm_blocks": hbm, "host_blocks": host, "max_pinned_blocks": hbm // 2}
        self.num_places = disk
        self.open()

    def open(self):
        self.epoch += 1
        self.pool = make_pool(
            epoch=self.epoch,
            clock=self.clock,
            disk=disk_in(self.folder, self.num_places),
            **self.sizes,
        )
        self.active, self.pins, self.prefetches = [], {}, []

    # an engine ----------------------------------------------------------------------------

    @rule(token_ids=PROMPTS, salt=SALTS)
    def prefill(self, token_ids, salt):
        num_pinned = sum(tier.pinned_blocks for tier in self.pool.status.tiers)
        num_leased = self.pool.num_leased
        try:
            lease = compute(self.pool, token_ids, salt=salt)
        except OutOfBlocksError:
            num_blocks = self.pool.layout.blocks_for(len(token_ids))
            assert num_blocks + num_leased + num_pinned > self.pool.num_hbm_blocks
            return
        self.active.append((lease, token_ids, salt))

    @rule(token_ids=PROMPTS, salt=SALTS)
    def whole_turn(self, token_ids, salt):
        num_active = len(self.active)
        self.prefill(token_ids, salt)
        if len(self.active) > num_active:
            lease, _, _ = self.active.pop()
            self.insert_all(lease, token_ids, salt)
            lease.close()

    @rule(index=INDEX)
    def insert(self, index):
        if self.active:
            self.insert_all(*self.active[index % len(self.active)])

    @rule(index=INDEX)
    def finish(self, index):
        if self.active:
            lease, _, _ = self.active.pop(index % len(self.active))
            lease.close()

    @rule(num_blocks=st.integers(0, 9))
    def alloc(self, num_blocks):
        available = self.pool.num_available
        try:
            self.pool.alloc_mem(num_blocks).close()
            assert num_blocks <= available
        except OutOfBlocksError:
            assert num_blocks > available == self.pool.num_available

    @rule(num_blocks=st.integers(1, 4))
    def swap_out(self, num_blocks):
        free = self.pool.num_free
        assert self.pool.swap_out(num_blocks) == self.pool.num_free - free

    @rule(token_ids=PROMPTS, salt=SALTS)
    def match(self, token_ids, salt):
        self.look(token_ids, salt)

    @rule(token_ids=PROMPTS, salt=SALTS)
    def swap_in(self, token_ids, salt):
        with self.pool.match_whole(token_ids, salt=salt) as lease:
            try:
                self.pool.swap_in(lease)
            except OutOfBlocksError:
                return
            assert all(address.tier is Tier.HBM for address in lease.blocks)
            assert lease.num_tokens == 2 * len(lease)
            self.assert_kv(lease, token_ids, salt)

    @rule(token_ids=PROMPTS, salt=SALTS)
    def prefetch(self, token_ids, salt):
        self.prefetches.append(self.pool.prefetch(token_ids, salt=salt, timeout_s=TIMEOUT_S))

    @rule(token_ids=PROMPTS, salt=SALTS)
    def prefetch_and_wait(self, token_ids, salt):
        self.prefetch(token_ids, salt)
        self.settle()
        assert self.prefetches[-1].is_done

    @rule(index=INDEX)
    def cancel(self, index):
        if self.prefetches:
            prefetch = self.prefetches[index % len(self.prefetches)]
            prefetch.cancel()
            assert prefetch.is_done

    @rule()
    def poll(self):
        self.pool.poll()

    @rule(seconds=st.floats(0.0, TIMEOUT_S))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    # an operator --------------------------------------------------------------------------

    @rule(token_ids=PROMPTS, salt=SALTS)
    def pin(self, token_ids, salt):
        try:
            num_blocks = self.pool.pin(token_ids, salt=salt)
        except OverloadedError:
            return
        if num_blocks:
            self.pins[salt, tuple(whole(token_ids))] = num_blocks

    @rule(index=INDEX)
    def unpin(self, index):
        if self.pins:
            pin = sorted(self.pins)[index % len(self.pins)]
            assert self.pool.unpin(pin[1], salt=pin[0]) == self.pins.pop(pin)

    @rule(token_ids=PROMPTS, salt=SALTS)
    def delete(self, token_ids, salt):
        self.pool.delete(token_ids, salt=salt)
        prompt = whole(token_ids)
        is_pinned = any(
            other == salt and list(prefix[: 2 * num_blocks])[: len(prompt)] == prompt
            for (other, prefix), num_blocks in self.pins.items()
        )
        if prompt and not is_pinned:
            assert self.pool.peek([*prompt, 0], salt=salt) < len(prompt)

    @rule(ends=st.booleans())
    def flush(self, ends):
        tiers = self.pool.status.tiers
        while not self.pool.flush() and ends:
            self.settle()
        for before, after in zip(tiers[:-1], self.pool.status.tiers[:-1], strict=True):
            assert before == after  # in memory nothing has moved

    @rule(really=st.sampled_from([True, False]), gracefully=st.booleans())
    def restart(self, really, gracefully):
        if not really:
            return
        if gracefully:
            self.close()
        else:
            disk = self.pool._memory.disk
            disk._writer.shutdown(cancel_futures=True)  # what was not written is lost
            disk._readers.shutdown(cancel_futures=True)
            disk._folder.close()
        self.open()

    # a bad disk ---------------------------------------------------------------------------

    @rule(index=INDEX, other=INDEX, byte=st.integers(0, 9999), damage=DAMAGES)
    def damage(self, index, other, byte, damage):
        for tier in (Tier.HBM, Tier.HOST):  # so that what is read comes from files
            if self.pool._memory.available(tier):
                self.pool.alloc_mem(self.pool._memory.available(tier), tier).close()
        self.settle()
        disk = self.pool._memory.disk
        files = [
            path
            for path in files_in(self.folder)
            if not any(
                disk.allocator.is_leased(place) and block.file == path.name
                for place, block in disk._names.items()
            )
        ]
        if not files:
            return
        path = files[index % len(files)]
        content = bytearray(path.read_bytes())
        if damage == "remove":
            path.unlink()
        elif damage == "exchange":
            path.write_bytes(files[other % len(files)].read_bytes())
        elif damage == "flip":
            byte = -1 - byte % 64 if byte % 2 else byte  # the block's bytes come last
            content[byte % len(content)] ^= 4
            path.write_bytes(content)
        else:
            path.write_bytes(content[:-1] if damage == "cut" else content + b"x")
        self.look_at_everything()

    @rule(num_blocks=st.integers(3, 8))
    def evict_and_look(self, num_blocks):
        self.alloc(num_blocks)
        self.look_at_everything()

    # what must hold -----------------------------------------------------------------------

    @invariant()
    def nothing_is_amiss(self):
        if self.pool is not None:
            self.pool.check()
            assert self.pool._memory.disk._failure is None

    @invariant()
    def leased_blocks_keep_their_bytes(self):
        for lease, token_ids, salt in self.active:
            self.assert_kv(lease, token_ids, salt)

    @invariant()
    def pinned_prefixes_are_held(self):
        for (salt, prefix), num_blocks in self.pins.items():
            assert self.pool.peek([*prefix, 0], salt=salt) >= 2 * num_blocks

    @invariant()
    def the_budget_holds(self):
        if self.pool is not None:
            assert len(files_in(self.folder)) <= self.num_places

    def teardown(self):
        if self.pool is not None:
            self.settle()
            for lease, _, _ in self.active:
                lease.close()
            self.settle()
            assert self.pool.num_leased == 0
            for salt, prefix in self.pins:
                self.pool.unpin(prefix, salt=salt)
            assert self.pool.num_available == self.pool.num_hbm_blocks
            assert self.pool.next_deadline_s is None
            self.close()
        shutil.rmtree(self.folder)

    # the model ----------------------------------------------------------------------------

    def close(self):
        for lease, _, _ in self.active:
            lease.close()
        self.pool.close()
        self.pool.check()
        assert self.pool.num_leased == 0

    def settle(self):
        """Waits for the disk's threads and takes what they brought."""
        disk = self.pool._memory.disk
        for prefetch in self.prefetches:
            for reading in list(prefetch._readings):
                reading.blocks.result()
        for _ in range(2):
            disk._writer.submit(lambda: None).result()
            self.pool.poll()
        for prefetch in self.prefetches:
            assert prefetch.is_done
        disk._writer.submit(lambda: None).result()

    def look(self, token_ids, salt):
        """Matches, and compares what can be read of it."""
        with self.pool.match_whole(token_ids, salt=salt) as lease:
            in_memory = [a for a in lease.blocks if a.tier is not Tier.DISK]
            for stop in range(2, 2 * len(lease) + 1, 2):
                assert (salt, tuple(token_ids[:stop])) in self.inserted
            places = [a.block for a in lease.blocks[len(in_memory) :]]
            disk = self.pool._memory.disk
            contents = disk.took(disk.read(places))
            kv = kv_of(self.pool.layout, token_ids, salt)
            for content, expected in zip(contents, kv[len(in_memory) :], strict=False):
                np.testing.assert_array_equal(content, expected)
            hosts = [at.block for at in in_memory if at.tier is Tier.HOST]
            if hosts:
                held = np.asarray(self.pool._memory.host.get(hosts))[: len(hosts)]
                first = len(in_memory) - len(hosts)
                np.testing.assert_array_equal(held, kv[first : len(in_memory)])

    def look_at_everything(self):
        for salt, prefix in sorted(self.inserted):
            self.look(list(prefix), salt)

    def insert_all(self, lease, token_ids, salt):
        self.pool.insert(token_ids, lease, salt=salt)
        for stop in range(2, len(token_ids) + 1, 2):
            self.inserted.add((salt, tuple(token_ids[:stop])))
        assert self.pool.peek([*whole(token_ids), 0], salt=salt) == len(whole(token_ids))

    def assert_kv(self, lease, token_ids, salt):
        kv = kv_of(self.pool.layout, token_ids, salt)[: len(lease)]
        np.testing.assert_array_equal(read_kv(self.pool, lease), kv)


TestTiers = TiersMachine.TestCase
TestTiers.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestTiersLong(TiersMachine.TestCase):
    settings = settings(max_examples=400, stateful_step_count=60, deadline=None)
