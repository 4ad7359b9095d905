"""Two pools, a bad network and anything anyone may ask: no block leaks, no byte is wrong.

The model is what a user knows: which sequences are active and what KV each block must hold.
KV follows from the prefix, so whatever `match` finds can be checked without a second index.
"""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import OutOfBlocksError, StaleAddressError, TransferFailedError
from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.mempool.transfer import TransferPhase
from tests.helpers.peers import Network, by_cell, by_row, uncut
from tests.helpers.pools import TINY, compute, kv_of, make_pool, read_kv

TIMEOUT_S = 10.0
LAYOUT = dataclasses.replace(TINY, num_layers=2)
PROMPTS = st.builds(
    lambda first, length: ([first] * 5 + [1 - first] * 4)[:length],
    st.integers(0, 1),
    st.sampled_from([9, 8, 7, 6, 5, 4, 3, 1]),
)
SALTS = st.sampled_from(["", "tenant"])
CUTS = st.sampled_from([uncut, uncut, by_row, by_cell])
ENDS = [(InstanceId("p0"), InstanceId("d0")), (InstanceId("d0"), InstanceId("p0"))]


class PoolMachine(RuleBasedStateMachine):
    """Rules an engine, a peer and the network may play; `check()` after each."""

    def __init__(self):
        super().__init__()
        self.network = Network(ManualClock())
        self.epochs = {"p0": 1, "d0": 1}
        self.active = []  # (pool, lease, token_ids, salt), written whole
        self.transfers = []
        self.inserted = set()  # (instance, salt, prefix) since its last delete
        self.private_of = {}  # private -> (token_ids, salt)

    @initialize(hbm=st.sampled_from([6, 5, 8]), host=st.sampled_from([3, 0, 5]))
    def start(self, hbm, host):
        make_pool("p0", hbm_blocks=hbm, host_blocks=host, layout=LAYOUT, network=self.network)
        make_pool(
            "d0",
            hbm_blocks=6,
            host_blocks=host,
            layout=LAYOUT,
            devices=[1],
            network=self.network,
        )

    def pool(self, data):
        return self.network.pools[data.draw(st.sampled_from(["p0", "d0"]))]

    # an engine ----------------------------------------------------------------------------

    @rule(data=st.data(), token_ids=PROMPTS, salt=SALTS)
    def prefill(self, data, token_ids, salt):
        pool = self.pool(data)
        try:
            lease = compute(pool, token_ids, salt=salt)
        except OutOfBlocksError:
            assert pool.layout.blocks_for(len(token_ids)) + pool.num_leased > pool.num_hbm_blocks
            return
        self.active.append((pool, lease, token_ids, salt))

    @rule(data=st.data(), token_ids=PROMPTS, salt=SALTS)
    def whole_turn(self, data, token_ids, salt):
        num_active = len(self.active)
        self.prefill(data, token_ids, salt)
        if len(self.active) > num_active:
            pool, lease, _, _ = self.active.pop()
            pool.insert(token_ids, lease, salt=salt)
            self.note_inserted(pool, token_ids, salt)
            lease.close()

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def insert(self, data):
        pool, lease, token_ids, salt = data.draw(st.sampled_from(self.active))
        num_before = pool.layout.whole_blocks(self.peek_whole(pool, token_ids, salt))
        whole = lease.blocks[: len(token_ids) // 2]
        if len({address.tier for address in whole}) > 1:
            with pytest.raises(ValueError, match="beside HBM ones"):
                pool.insert(token_ids, lease, salt=salt)
            return
        num_new = pool.insert(token_ids, lease, salt=salt)
        num_whole = pool.layout.whole_blocks(len(token_ids))
        assert num_new == 2 * (num_whole - num_before)
        assert self.peek_whole(pool, token_ids, salt) == 2 * num_whole
        self.note_inserted(pool, token_ids, salt)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def finish(self, data):
        index = data.draw(st.integers(0, len(self.active) - 1))
        _, lease, _, _ = self.active.pop(index)
        lease.close()
        lease.close()

    @rule(data=st.data(), num_blocks=st.integers(0, 9))
    def alloc(self, data, num_blocks):
        pool = self.pool(data)
        available = pool.num_available
        try:
            pool.alloc_mem(num_blocks).close()
            assert num_blocks <= available
        except OutOfBlocksError:
            assert num_blocks > available == pool.num_available

    @rule(data=st.data(), num_blocks=st.integers(1, 4))
    def swap_out(self, data, num_blocks):
        pool = self.pool(data)
        free = pool.num_free
        assert pool.swap_out(num_blocks) == pool.num_free - free

    @rule(data=st.data(), token_ids=PROMPTS, salt=SALTS)
    def delete(self, data, token_ids, salt):
        pool = self.pool(data)
        pool.delete(token_ids, salt=salt)
        whole = token_ids[: len(token_ids) // 2 * 2]
        if whole:
            assert self.peek_whole(pool, whole, salt) < len(whole)

    @rule(data=st.data(), token_ids=PROMPTS, salt=SALTS)
    def match(self, data, token_ids, salt):
        pool = self.pool(data)
        with pool.match_whole(token_ids, salt=salt) as lease:
            self.assert_kv(pool, lease, token_ids, salt)
            for stop in range(2, 2 * len(lease) + 1, 2):
                assert (pool.instance, salt, tuple(token_ids[:stop])) in self.inserted

    # peers --------------------------------------------------------------------------------

    @precondition(lambda self: self.active)
    @rule(
        data=st.data(),
        with_insert=st.booleans(),
        is_suffix=st.booleans(),
        may_wait=st.booleans(),
        has_reader=st.booleans(),
        extra_blocks=st.integers(0, 3),
        tier=st.sampled_from([Tier.HBM, Tier.HBM, Tier.HOST]),
        cut=CUTS,
    )
    def send(self, data, with_insert, is_suffix, may_wait, has_reader, extra_blocks, tier, cut):
        pool, lease, token_ids, salt = data.draw(st.sampled_from(self.active))
        to = dict(ENDS)[pool.instance]
        self.network.cut = cut
        has_reader |= not with_insert
        private = f"{len(self.transfers)}".encode() if has_reader else b""
        if private:
            self.private_of[private] = (token_ids, salt)
        terms = {
            "salt": salt,
            "first_block": min(int(is_suffix), len(token_ids) // 2),
            "private": private,
            "extra_blocks": extra_blocks,
            "may_wait": may_wait,
            "tier": tier,
            "timeout_s": TIMEOUT_S,
        }
        if with_insert:
            transfer = pool.transfer_with_insert(token_ids, lease, to, **terms)
            self.note_inserted(self.network.pools[to], token_ids, salt)
        else:
            transfer = pool.transfer(lease, to, token_ids=token_ids, **terms)
        self.transfers.append((pool, transfer))

    @rule(
        data=st.data(),
        token_ids=PROMPTS,
        salt=SALTS,
        tier=st.sampled_from([Tier.HBM, Tier.HOST]),
        cut=CUTS,
    )
    def send_found(self, data, token_ids, salt, tier, cut):
        """Historical KV leaves from whichever tiers it lies in."""
        pool = self.pool(data)
        to = dict(ENDS)[pool.instance]
        self.network.cut = cut
        with pool.match_whole(token_ids, salt=salt) as lease:
            found = token_ids[: 2 * len(lease)]
            if not found:
                return
            transfer = pool.transfer_with_insert(
                found, lease, to, salt=salt, tier=tier, timeout_s=TIMEOUT_S
            )
        self.note_inserted(self.network.pools[to], found, salt)
        self.transfers.append((pool, transfer))

    @rule(data=st.data(), token_ids=PROMPTS, salt=SALTS, private=st.sampled_from([b"", b"all"]))
    def hand_over(self, data, token_ids, salt, private):
        """A prompt computed, sent and indexed at both ends, while the network behaves."""
        num_active = len(self.active)
        self.prefill(data, token_ids, salt)
        if len(self.active) == num_active:
            return
        pool, lease, _, _ = self.active.pop()
        to = dict(ENDS)[pool.instance]
        if private:
            private = f"{len(self.transfers)}".encode()
            self.private_of[private] = (token_ids, salt)
        transfer = pool.transfer_with_insert(
            token_ids, lease, to, salt=salt, private=private, may_wait=False, timeout_s=TIMEOUT_S
        )
        lease.close()
        self.note_inserted(self.network.pools[to], token_ids, salt)
        self.transfers.append((pool, transfer))
        self.take(self.network.run())
        assert transfer.is_ended

    @precondition(lambda self: self.transfers)
    @rule(data=st.data())
    def cancel(self, data):
        pool, transfer = data.draw(st.sampled_from(self.transfers))
        if pool is self.network.pools.get(pool.instance):
            pool.cancel(transfer, "cancelled")
            assert transfer.is_ended

    @precondition(lambda self: self.network.messages)
    @rule(data=st.data(), how=st.sampled_from(["deliver"] * 5 + ["drop", "fail", "duplicate"]))
    def network_acts(self, data, how):
        index = data.draw(st.integers(0, len(self.network.messages) - 1))
        getattr(self.network, how)(index)

    @rule()
    def network_settles(self):
        self.take(self.network.run())

    @rule(seconds=st.floats(0.0, TIMEOUT_S))
    def time_passes(self, seconds):
        self.network.clock.advance(seconds)

    @rule()
    def poll(self):
        self.take(self.network.poll())

    @precondition(lambda self: self.transfers)
    @rule(data=st.data(), really=st.sampled_from([False, False, False, True]))
    def restart(self, data, really):
        """A peer dies and comes back in a new life; the other one is told."""
        if not really:
            return
        pool = self.pool(data)
        self.active = [each for each in self.active if each[0] is not pool]
        self.inserted = {each for each in self.inserted if each[0] != pool.instance}
        self.epochs[pool.instance] += 1
        make_pool(
            pool.instance,
            hbm_blocks=pool.num_hbm_blocks,
            host_blocks=3,
            devices=[int(pool.instance == "d0")],
            layout=LAYOUT,
            epoch=self.epochs[pool.instance],
            network=self.network,
        )
        for each in self.network.pools.values():
            each.peers_changed(self.epochs)

    # what must hold -----------------------------------------------------------------------

    @invariant()
    def nothing_is_amiss(self):
        for pool in self.network.pools.values():
            pool.check()

    @invariant()
    def leased_blocks_keep_their_bytes(self):
        for pool, lease, token_ids, salt in self.active:
            self.assert_kv(pool, lease, token_ids, salt)

    def teardown(self):
        if not self.network.pools:
            return
        self.network.messages.clear()  # whatever was still on its way is lost
        self.network.clock.advance(2 * TIMEOUT_S)
        self.take(self.network.run())
        for _, lease, _, _ in self.active:
            lease.close()
        live = self.network.pools.values()
        for pool in live:
            pool.check()
            assert pool.num_leased == 0
            assert pool.num_available == pool.num_hbm_blocks
            assert pool.next_deadline_s is None
        for pool, transfer in self.transfers:
            if pool in live:
                assert transfer.is_ended
                assert (transfer.phase is TransferPhase.DONE) == (transfer.error is None)
                assert transfer.error is None or isinstance(
                    transfer.error, (TransferFailedError, StaleAddressError)
                )

    # the model ----------------------------------------------------------------------------

    def take(self, arrivals):
        for arrival in arrivals:
            token_ids, salt = self.private_of[arrival.private]
            assert list(arrival.token_ids) == token_ids
            pool = self.network.pools[dict(ENDS)[arrival.sender]]
            self.active.append((pool, arrival.lease, token_ids, salt))

    def assert_kv(self, pool, lease, token_ids, salt):
        kv = kv_of(pool.layout, token_ids, salt)[: len(lease)]
        np.testing.assert_array_equal(read_kv(pool, lease), kv)

    def peek_whole(self, pool, token_ids, salt):
        """Tokens held, as `match_whole` would find them, without touching them."""
        return pool.peek([*token_ids[: len(token_ids) // 2 * 2], 0], salt=salt)

    def note_inserted(self, pool, token_ids, salt):
        for stop in range(2, len(token_ids) + 1, 2):
            self.inserted.add((pool.instance, salt, tuple(token_ids[:stop])))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestPoolLong(PoolMachine.TestCase):
    settings = settings(max_examples=400, stateful_step_count=60, deadline=None)
