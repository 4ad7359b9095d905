"""JAX's own paged attention for TPU as a second oracle: written by others, laid out otherwise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention as jax_paged_attention

from pallas_kernels.backend import Backend
from pallas_kernels.paged_attention.op import paged_attention
from pallas_kernels.ragged_paged_attention.op import ragged_paged_attention
from tests.helpers.paged import make_queries, make_rows

SCALE = 0.19
TOLERANCE = 2e-2  # JAX's kernel multiplies in bfloat16


def ask_jax(q, rows, context_lens, block_tables):
    """Returns JAX's attention of one query a row. It wants pages `[K, M, S, H]` and finite."""
    finite = [jnp.nan_to_num(pages).transpose(1, 0, 2, 3) for pages in rows[:2]]
    width = block_tables.shape[1]
    tables = jnp.minimum(block_tables, rows.k_pages.shape[0] - 1)
    with (
        pltpu.force_tpu_interpret_mode(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return jax_paged_attention(
            q * SCALE, *finite, context_lens, tables, pages_per_compute_block=width
        )


@pytest.mark.parametrize("backend", [Backend.XLA, Backend.INTERPRET])
def test_decoding(backend):
    rows = make_rows([1, 16, 17, 100], head_dim=128)
    q = make_queries(4, 8, head_dim=128)
    got = paged_attention(q, *rows[:4], scale=SCALE, backend=backend)
    want = ask_jax(q, rows, rows.context_lens, rows.block_tables)
    np.testing.assert_allclose(got, want, atol=TOLERANCE)


@pytest.mark.parametrize("backend", [Backend.XLA, Backend.INTERPRET])
def test_prefill_is_decoding_token_by_token(backend):
    rows = make_rows([40], head_dim=128)
    q = make_queries(6, 8, head_dim=128)
    op = functools.partial(ragged_paged_attention, scale=SCALE, backend=backend)
    got = op(q, *rows[:3], jnp.asarray([0, 6], jnp.int32), rows.context_lens)
    each = jnp.arange(35, 41, dtype=jnp.int32)
    want = ask_jax(q, rows, each, jnp.repeat(rows.block_tables, 6, axis=0))
    np.testing.assert_allclose(got, want, atol=TOLERANCE)
