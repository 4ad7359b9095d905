import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.types import InstanceId
from memserve_jax.engine.memory import SequenceMemory
from memserve_jax.engine.preload import Preload
from memserve_jax.engine.sequence import Duty, Phase
from memserve_jax.mempool.pool import MemPool
from tests.helpers.engines import bundle_on
from tests.helpers.sequences import make_sequence


def memory_of(num_blocks=8, *, host_blocks=0, caches=True, swaps=False):
    bundle = bundle_on()
    pool = MemPool(
        instance=InstanceId("c0"),
        epoch=1,
        layout=bundle.config.layout(8, bundle.dtype),
        mesh=bundle.mesh,
        hbm_blocks=num_blocks,
        host_blocks=host_blocks,
        clock=ManualClock(),
    )
    preload = Preload(pool, caches=caches, timeout_s=1.0)
    memory = SequenceMemory(pool, preload, block_size_tokens=8, caches=caches, swaps=swaps)
    return memory, pool


def test_admission_takes_room_for_the_next_token():
    memory, pool = memory_of()
    sequence = make_sequence(prompt=16, max_tokens=4)
    assert memory.acquire(sequence)
    assert sequence.num_blocks == len(sequence.lease) == 3
    prefill = make_sequence(1, prompt=16, max_tokens=4, duty=Duty.PREFILL)
    assert memory.acquire(prefill)
    assert prefill.num_blocks == 2
    assert not memory.acquire(make_sequence(2, prompt=30))
    memory.release(sequence)
    memory.release(prefill)
    assert pool.num_leased == 0


def test_what_was_computed_is_found_again():
    memory, pool = memory_of()
    first = make_sequence(0, prompt=17)
    memory.acquire(first)
    first.num_computed = 17
    memory.remember(first, list(first.request.prompt_token_ids))
    memory.release(first)
    second = make_sequence(1, prompt=17)
    assert memory.acquire(second)
    assert second.num_computed == second.cached_tokens == memory.num_cached_tokens == 16
    memory.release(second)
    pool.check()


def test_without_caching_nothing_is_remembered():
    memory, _ = memory_of(caches=False)
    first = make_sequence(0, prompt=17)
    memory.acquire(first)
    first.num_computed = 17
    memory.preempt(first)
    assert memory.acquire(first)
    assert first.num_computed == first.cached_tokens == 0
    memory.release(first)


@pytest.mark.parametrize("host_blocks", [0, 8])
def test_a_preempted_sequence_resumes_from_its_whole_blocks(host_blocks):
    memory, pool = memory_of(host_blocks=host_blocks, swaps=True)
    sequence = make_sequence(prompt=17, max_tokens=20)
    memory.acquire(sequence)
    sequence.enter(Phase.PREFILLING)
    sequence.num_computed = 17
    sequence.token_ids.append(9)
    memory.preempt(sequence)
    assert pool.num_leased == 0
    assert pool.counters.blocks_swapped_out == (2 if host_blocks else 0)
    assert memory.acquire(sequence)
    assert sequence.num_computed == 16
    assert sequence.cached_tokens == 0  # as of the first attempt
    assert pool.counters.blocks_swapped_in == (2 if host_blocks else 0)
    memory.release(sequence)
    pool.check()


def test_growing_takes_one_block_when_the_last_is_full():
    memory, _ = memory_of(3)
    sequence = make_sequence(prompt=15, max_tokens=20)
    memory.acquire(sequence)
    sequence.num_computed = 15
    assert memory.grow(sequence)
    assert sequence.num_blocks == 2
    sequence.num_computed = 16
    assert memory.grow(sequence)
    assert sequence.num_blocks == 3
    sequence.num_computed = 24
    assert not memory.grow(sequence)
    assert sequence.num_blocks == 3
    memory.release(sequence)
