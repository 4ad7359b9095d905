import jax.numpy as jnp
import numpy as np

from memserve_jax.core.types import SamplingParams
from memserve_jax.engine.inputs import (
    FROM_DEVICE,
    RowTable,
    decode_batch,
    mixed_batch,
    unpack_lines,
)

S, M = 4, 10
PAGES = {"page_size": S, "num_pages": M}


def table_of_three():
    """Row 0 computes tokens 5, 6, 7 of its sequence; row 2 one at 3; row 1 is idle."""
    table = RowTable(num_rows=3, table_width=3)
    sampling = SamplingParams(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1)
    for row, blocks in ((0, [7, 2]), (2, [9])):
        table.open(row, sampling, seed=(3 << 32) + 2**32 - 1)
        table.set_blocks(row, blocks)
    table.set_blocks(0, [4], first=2)
    table.schedule(0, position=5, num_new=3, samples=True, token=11)
    table.schedule(2, position=3, num_new=1, samples=False)
    return table


def test_lines_carry_every_parameter():
    rows = unpack_lines(jnp.asarray(table_of_three().pack_decode([2, 0], 3)))
    assert rows.sampling.rows.tolist() == [2, 0, 3]
    assert rows.sampling.samples.tolist() == [False, True, False]
    assert rows.sampling.positions.tolist() == [4, 8, 0]
    assert rows.sampling.seeds[0].tolist() == [3, 2**32 - 1]
    np.testing.assert_allclose(rows.sampling.temperature[:2], 0.5)
    np.testing.assert_allclose(rows.sampling.top_p[:2], 0.9)
    np.testing.assert_allclose(rows.sampling.min_p[:2], 0.1)
    assert rows.sampling.top_k[:2].tolist() == [3, 3]
    assert rows.block_tables[1].tolist() == [7, 2, 4]


def test_a_decode_batch_takes_unseen_tokens_from_the_device():
    table = table_of_three()
    table.schedule(0, position=5, num_new=1, samples=True, token=11)
    rows = unpack_lines(jnp.asarray(table.pack_decode([2, 0], 4)))
    batch = decode_batch(rows, jnp.array([50, 51, 52], jnp.int32), **PAGES)
    assert batch.token_ids[:2].tolist() == [52, 11]
    assert batch.slots.tolist() == [9 * S + 3, 2 * S + 1, M * S, M * S]
    assert batch.context_lens.tolist() == [4, 6, 0, 0]


def test_a_mixed_batch_flattens_rows_in_order():
    table = table_of_three()
    packed = jnp.asarray(table.pack_mixed([0, 2], [[11, 12, 13], [FROM_DEVICE]], 6))
    rows = unpack_lines(packed[6:].reshape(3, -1))
    batch = mixed_batch(packed[:6], rows, jnp.array([50, 51, 52], jnp.int32), **PAGES)
    assert batch.token_ids[:4].tolist() == [11, 12, 13, 52]
    assert batch.positions.tolist() == [5, 6, 7, 3, 0, 0]
    assert batch.slots.tolist() == [2 * S + 1, 2 * S + 2, 2 * S + 3, 9 * S + 3, M * S, M * S]
    assert batch.query_starts.tolist() == [0, 3, 3, 4]
    assert batch.context_lens.tolist() == [8, 0, 4]


def test_a_reopened_row_forgets_its_request():
    table = table_of_three()
    table.open(0, SamplingParams(temperature=0.0), seed=1)
    rows = unpack_lines(jnp.asarray(table.pack_decode([0], 1)))
    assert rows.num_new.tolist() == [0]
    assert rows.sampling.top_k.tolist() == [0]
    assert rows.sampling.seeds.tolist() == [[0, 1]]
