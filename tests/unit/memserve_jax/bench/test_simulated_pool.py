"""The memory of a simulated instance behaves as the pool it stands for."""

from hypothesis import given, settings
from hypothesis import strategies as st

from memserve_jax.bench.simulated_pool import SimulatedPool
from memserve_jax.core.block_keys import block_keys

S = 4


def keys_of(*blocks: int):
    return block_keys([block for block in blocks for _ in range(S)], S)


def test_what_was_inserted_is_held_until_it_is_the_oldest():
    pool = SimulatedPool(4)
    first = pool.lease("", keys_of(1, 2), 3)
    assert first is not None and first.num_held == 0
    assert pool.lease("", keys_of(7), 2) is None
    pool.insert(first, keys_of(1, 2))
    pool.release(first)
    again = pool.lease("", keys_of(1, 2), 2)
    assert again is not None and again.num_held == 2
    pool.release(again)
    other = pool.lease("", keys_of(5, 6, 7), 3)
    assert other is not None
    pool.release(other)
    left = pool.lease("", keys_of(1, 2), 2)
    assert left is not None and left.num_held == 1  # the end of the prefix went first
    pool.check()


def test_salts_share_nothing():
    pool = SimulatedPool(4)
    lease = pool.lease("red", keys_of(1), 1)
    assert lease is not None
    pool.insert(lease, keys_of(1))
    pool.release(lease)
    blue = pool.lease("blue", keys_of(1), 1)
    assert blue is not None and blue.num_held == 0


@settings(max_examples=40)
@given(
    prompts=st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(0, 2)),
        max_size=30,
    )
)
def test_nothing_leaks(prompts):
    pool = SimulatedPool(8)
    held = []
    for blocks, extra in prompts:
        keys = keys_of(*blocks)
        lease = pool.lease("", keys, len(keys) + extra)
        if lease is None:
            while held:
                pool.release(held.pop())
        else:
            pool.insert(lease, keys)
            held.append(lease)
        pool.check()
    for lease in held:
        pool.release(lease)
    pool.check()
    everything = pool.lease("", keys_of(9), 8)
    assert everything is not None and len(everything.blocks) == 8
