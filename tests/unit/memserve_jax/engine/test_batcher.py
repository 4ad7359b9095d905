import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.engine.batcher import Batcher
from memserve_jax.engine.sequence import Duty, Phase
from tests.helpers.sequences import CountedLease, CountedMemory, make_sequence


def advance(batcher, chunks):
    """Plays the device: computes the chunks, and ends answers that have all their tokens."""
    for chunk in chunks:
        sequence = chunk.sequence
        sequence.num_computed += chunk.num_tokens
        if not chunk.samples:
            continue
        sequence.token_ids.append(0)
        sequence.answer.num_tokens += 1
        if sequence.phase is Phase.PREFILLING:
            sequence.enter(Phase.RUNNING)
        if not sequence.wants_step:
            batcher.drop(sequence)
            sequence.enter(Phase.FINISHED)
            batcher._memory.release(sequence)


def step(batcher):
    preempted = []
    while not batcher.grow() and (victim := batcher.preempt()):
        preempted.append(victim)
    chunks = batcher.plan()
    batcher.check()
    return chunks, preempted


def test_a_prompt_is_chunked_and_decodes_ride_along():
    batcher = Batcher(CountedMemory(100), max_running=4, chunk_tokens=16)
    first, second = make_sequence(0, prompt=3), make_sequence(1, prompt=40)
    batcher.add(first)
    chunks, _ = step(batcher)
    assert [(c.num_tokens, c.samples) for c in chunks] == [(3, True)]
    advance(batcher, chunks)
    batcher.add(second)
    sizes = []
    while second.phase is not Phase.RUNNING:
        chunks, _ = step(batcher)
        sizes.append({c.sequence.order: c.num_tokens for c in chunks})
        advance(batcher, chunks)
    assert sizes == [{1: 15, 0: 1}, {1: 15, 0: 1}, {1: 10, 0: 1}]


def test_lower_priority_values_go_first_then_arrival():
    batcher = Batcher(CountedMemory(100), max_running=2, chunk_tokens=64)
    for order, priority in enumerate((1, 0, 0, -1)):
        batcher.add(make_sequence(order, priority=priority))
    chunks, _ = step(batcher)
    assert [c.sequence.order for c in chunks] == [3, 1]


def test_nobody_overtakes_a_request_that_waits_for_memory_save_those_with_blocks():
    memory = CountedMemory(4)
    batcher = Batcher(memory, max_running=4, chunk_tokens=64)
    batcher.add(make_sequence(0, prompt=30))
    batcher.add(make_sequence(1, prompt=3))
    arrived = make_sequence(2, prompt=4, duty=Duty.DECODE)
    arrived.lease, arrived.num_blocks, arrived.num_computed = CountedLease(), 1, 4
    arrived.token_ids.append(7)
    arrived.enter(Phase.WAITING)
    batcher.add(arrived)
    chunks, _ = step(batcher)
    assert [(c.sequence.order, c.num_tokens) for c in chunks] == [(2, 1)]


def test_the_last_in_rank_gives_way_and_comes_back():
    memory = CountedMemory(4, block_size=4)
    batcher = Batcher(memory, max_running=4, chunk_tokens=64)
    old, young = make_sequence(0, prompt=7, max_tokens=6), make_sequence(1, prompt=7, max_tokens=6)
    batcher.add(old)
    batcher.add(young)
    chunks, preempted = step(batcher)
    while not preempted:
        advance(batcher, chunks)
        chunks, preempted = step(batcher)
    assert preempted == [young]
    assert young.phase is Phase.WAITING
    assert young.num_computed == 0
    for _ in range(30):
        advance(batcher, chunks)
        chunks, _ = step(batcher)
    assert old.phase is young.phase is Phase.FINISHED
    assert memory.free == 4


def test_the_only_holder_of_blocks_is_not_preempted():
    memory = CountedMemory(2, block_size=4)
    batcher = Batcher(memory, max_running=2, chunk_tokens=64)
    batcher.add(make_sequence(0, prompt=4, max_tokens=8))
    advance(batcher, step(batcher)[0])
    memory.free = 0
    batcher.running[0].num_computed = 8
    chunks, preempted = step(batcher)
    assert not chunks
    assert not preempted


def test_rows_that_decode_take_turns_beside_a_prompt():
    batcher = Batcher(CountedMemory(1000), max_running=40, chunk_tokens=16)
    decoding = [make_sequence(i, prompt=1, max_tokens=100) for i in range(30)]
    for sequence in decoding:
        batcher.add(sequence)
    while any(sequence.phase is not Phase.RUNNING for sequence in decoding):
        advance(batcher, step(batcher)[0])
    before = [len(sequence.token_ids) for sequence in decoding]
    batcher.add(make_sequence(99, prompt=8 * 8))
    for _ in range(8):
        chunks, _ = step(batcher)
        assert sum(chunk.num_tokens for chunk in chunks) == 16
        advance(batcher, chunks)
    gained = [len(s.token_ids) - b for s, b in zip(decoding, before, strict=True)]
    assert sum(gained) == 64
    assert max(gained) - min(gained) <= 1
    chunks, _ = step(batcher)
    assert len(chunks) == 31  # nothing but single tokens: every row goes


@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(-1, 1)),
        min_size=1,
        max_size=12,
    ),
    max_running=st.integers(1, 5),
    chunk_tokens=st.integers(16, 24),
    spare_blocks=st.integers(0, 10),
    arrivals=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_budgets_hold_and_everyone_ends(lengths, max_running, chunk_tokens, spare_blocks, arrivals):
    most = max(-(-(prompt + answer) // 4) for prompt, answer, _ in lengths)
    memory = CountedMemory(most + spare_blocks)
    batcher = Batcher(memory, max_running=max_running, chunk_tokens=chunk_tokens)
    to_come = [
        make_sequence(i, prompt=prompt, max_tokens=answer, priority=priority)
        for i, (prompt, answer, priority) in enumerate(lengths)
    ]
    everyone = list(to_come)
    for i in range(4000):
        if i % 3 == 0:
            for _ in range(arrivals[i // 3 % 12]):
                if to_come:
                    batcher.add(to_come.pop(0))
        chunks, _ = step(batcher)
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks) <= max_running
        if any(chunk.num_tokens > 1 for chunk in chunks):
            assert sum(chunk.num_tokens for chunk in chunks) <= chunk_tokens
        if not to_come:
            assert chunks or not (batcher.running or batcher.waiting)
        advance(batcher, chunks)
        if not to_come and not batcher.running and not batcher.waiting:
            break
        if i % 12 == 11 and to_come:
            batcher.add(to_come.pop(0))
    assert all(sequence.phase is Phase.FINISHED for sequence in everyone)
    assert memory.free == most + spare_blocks


def test_an_illegal_move_is_refused():
    with pytest.raises(AssertionError):
        make_sequence().enter(Phase.HANDING_OFF)
