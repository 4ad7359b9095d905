from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.core.config import EngineSection
from memserve_jax.engine.buckets import make_ladder


def test_the_default_ladder_has_six_rungs_a_phase():
    config = EngineSection()
    ladder = make_ladder(max_running=config.max_running, chunk_tokens=config.chunk_tokens)
    assert ladder.decode_rows == (1, 2, 4, 8, 16, 32)
    assert ladder.mixed_tokens == (16, 32, 64, 128, 256, 512)
    assert len(ladder) == 12


@given(max_running=st.integers(1, 300), chunk_tokens=st.integers(16, 3000), data=st.data())
def test_every_size_has_a_rung_less_than_twice_as_large(max_running, chunk_tokens, data):
    ladder = make_ladder(max_running=max_running, chunk_tokens=chunk_tokens)
    num_rows = data.draw(st.integers(1, max_running))
    num_tokens = data.draw(st.integers(1, chunk_tokens))
    assert num_rows <= ladder.rows(num_rows) < 2 * num_rows or num_rows == 1
    assert num_tokens <= ladder.tokens(num_tokens)
    assert ladder.tokens(num_tokens) < 2 * num_tokens or ladder.tokens(num_tokens) == 16
    assert ladder.rows(max_running) == max_running
    assert ladder.tokens(chunk_tokens) == chunk_tokens


def test_an_engine_that_only_prefills_has_no_decode_rungs():
    ladder = make_ladder(max_running=8, chunk_tokens=32, decodes=False)
    assert ladder.decode_rows == ()
    assert len(ladder) == len(ladder.mixed_tokens) == 2
