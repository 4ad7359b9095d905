"""Leases: what they promise, and whose they are."""

import pytest

from memserve_jax.core.errors import StaleAddressError
from memserve_jax.core.types import BlockAddress, InstanceId, Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.lease import LeaseBook


class Shelf:
    """A book over two small tiers that remembers what it was told."""

    def __init__(self):
        self.allocators = {tier: BlockAllocator(tier, 4) for tier in (Tier.HBM, Tier.HOST)}
        self.idle = []
        self.num_released = 0
        addresses = {
            tier: [self.address(tier, block) for block in range(4)] for tier in self.allocators
        }
        self.book = LeaseBook(
            self.allocators,
            addresses,
            became_idle=lambda tier, blocks: self.idle.append((tier, blocks)),
            released=self.released,
        )

    def released(self):
        self.num_released += 1

    def address(self, tier, block):
        return BlockAddress(InstanceId("p0"), 1, tier, block)

    def lease(self, count, tier=Tier.HBM):
        blocks = self.allocators[tier].alloc(count)
        return self.book.open(tier, blocks, count)


@pytest.fixture
def shelf():
    shelf = Shelf()
    yield shelf
    shelf.book.check()
    for allocator in shelf.allocators.values():
        allocator.check()


def test_a_with_block_closes_its_lease(shelf):
    with shelf.lease(3) as lease:
        assert (lease.is_open, len(lease), lease.block_ids) == (True, 3, [0, 1, 2])
        assert shelf.book.num_open == 1
    assert (lease.is_open, lease.blocks, shelf.book.num_open) == (False, (), 0)
    lease.close()
    assert (shelf.num_released, shelf.allocators[Tier.HBM].num_free) == (1, 4)


def test_a_lease_may_hold_blocks_of_several_tiers(shelf):
    lease = shelf.lease(2)
    lease.absorb(shelf.lease(1))
    assert (lease.block_ids, lease.leading(2)) == ([0, 1, 2], (Tier.HBM, [0, 1]))
    lease.absorb(shelf.lease(2, Tier.HOST))
    tiers = [address.tier for address in lease.blocks]
    assert (len(lease), tiers) == (5, [Tier.HBM] * 3 + [Tier.HOST] * 2)
    shelf.book.check()
    twin = lease.share()
    assert (twin.blocks, twin.leading(3)) == (lease.blocks, (Tier.HBM, [0, 1, 2]))
    lease.close()
    shelf.book.check()
    with pytest.raises(ValueError, match="swap it in first"):
        twin.leading(4)
    tail = shelf.book.split(twin, 3)
    assert (twin.block_ids, [address.tier for address in tail.blocks]) == (
        [0, 1, 2],
        [Tier.HOST] * 2,
    )
    tail.close()
    twin.close()


def test_shared_blocks_are_free_when_both_leases_are_closed(shelf):
    lease = shelf.lease(2)
    twin = lease.share()
    assert (twin.blocks, twin.num_tokens) == (lease.blocks, lease.num_tokens)
    lease.close()
    shelf.book.check()
    assert shelf.allocators[Tier.HBM].num_free == 2
    twin.close()
    assert shelf.allocators[Tier.HBM].num_free == 4


def test_absorbing_moves_blocks_and_closes_the_other(shelf):
    lease, other = shelf.lease(1), shelf.lease(2, Tier.HOST)
    lease.absorb(other)
    assert (len(lease), lease.num_tokens, other.is_open) == (3, 3, False)
    assert [address.tier for address in lease.blocks] == [Tier.HBM, Tier.HOST, Tier.HOST]
    with pytest.raises(ValueError, match="swap it in"):
        _ = lease.block_ids
    with pytest.raises(ValueError, match="itself"):
        lease.absorb(lease)
    with pytest.raises(ValueError, match="closed"):
        lease.absorb(other)
    with pytest.raises(ValueError, match="closed"):
        other.share()
    lease.close()


def test_a_lease_of_another_pool_is_refused(shelf):
    with Shelf().lease(1) as foreign, shelf.lease(1) as lease:
        with pytest.raises(StaleAddressError):
            lease.absorb(foreign)
        with pytest.raises(StaleAddressError):
            shelf.book.expect_open(foreign)


def test_closing_tells_which_indexed_blocks_are_idle(shelf):
    lease = shelf.lease(3)
    shelf.allocators[Tier.HBM].hold([1])
    lease.close()
    assert shelf.idle == [(Tier.HBM, [1])]
    assert shelf.allocators[Tier.HBM].num_free == 3


def test_anchors_are_leased_once_and_travel_with_the_lease(shelf):
    lease, anchor = shelf.lease(1), shelf.lease(1)
    address = anchor.blocks[0]
    shelf.book.anchor(lease, [address])
    shelf.book.anchor(lease, [address])
    anchor.close()
    assert len(lease) == 1
    twin = lease.share()
    lease.close()
    shelf.book.check()
    assert shelf.allocators[Tier.HBM].num_leased == 2
    host = shelf.lease(1, Tier.HOST)
    host.absorb(twin)
    host.close()
    assert shelf.allocators[Tier.HBM].num_leased == 0


def test_replacing_a_block_ends_the_old_ones_lease(shelf):
    lease = shelf.lease(2, Tier.HOST)
    (block,) = shelf.allocators[Tier.HBM].alloc(1)
    shelf.book.replace(lease, 1, shelf.address(Tier.HBM, block))
    assert [address.tier for address in lease.blocks] == [Tier.HOST, Tier.HBM]
    assert shelf.allocators[Tier.HOST].num_free == 3
    lease.close()


def test_splitting_moves_the_tail(shelf):
    lease = shelf.lease(4)
    tail = shelf.book.split(lease, 1)
    assert (lease.block_ids, tail.block_ids) == ([0], [1, 2, 3])
    tail.close()
    assert shelf.allocators[Tier.HBM].num_free == 3
    lease.close()


def test_check_finds_a_lease_that_was_not_counted(shelf):
    (block,) = shelf.allocators[Tier.HBM].alloc(1)
    with pytest.raises(AssertionError, match="lease counts"):
        shelf.book.check()
    shelf.allocators[Tier.HBM].release([block])
