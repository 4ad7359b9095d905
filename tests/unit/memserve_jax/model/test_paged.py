"""Appending and attending in one call equals dense attention, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.model.batch import DecodeBatch, PrefillBatch
from memserve_jax.model.paged import PagedKernels
from memserve_jax.parallel.mesh import make_mesh
from pallas_kernels.backend import Backend

BLOCK, BLOCKS, HEADS, KV_HEADS, HEAD_DIM = 4, 6, 4, 2, 8
TABLE = np.array([[5, 0, 2]], np.int32)  # one row
SCALE = HEAD_DIM**-0.5


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(q, k, v, window):
    """Causal attention of the last `len(q)` of `len(k)` tokens."""
    first = len(k) - len(q)
    out = np.zeros_like(q)
    for i in range(len(q)):
        for head in range(HEADS):
            seen = slice(max(0, first + i + 1 - (window or len(k))), first + i + 1)
            kv_head = head // (HEADS // KV_HEADS)
            scores = k[seen, kv_head] @ q[i, head] * SCALE
            weights = np.exp(scores - scores.max())
            out[i, head] = weights / weights.sum() @ v[seen, kv_head]
    return out


def slots_of(positions) -> jax.Array:
    positions = np.asarray(positions)
    return jnp.asarray(TABLE[0][positions // BLOCK] * BLOCK + positions % BLOCK)


def prefill_batch(start: int, stop: int) -> PrefillBatch:
    return PrefillBatch(
        token_ids=jnp.zeros(stop - start, jnp.int32),
        positions=jnp.arange(start, stop, dtype=jnp.int32),
        slots=slots_of(range(start, stop)),
        block_tables=jnp.asarray(TABLE),
        query_starts=jnp.array([0, stop - start], jnp.int32),
        context_lens=jnp.array([stop], jnp.int32),
    )


@pytest.mark.parametrize(("tp", "window"), [(1, None), (2, 3)])
def test_prefill_in_chunks_then_decode(tp, window):
    mesh = make_mesh(jax.devices()[:tp], tp)
    kernels = PagedKernels(mesh=mesh, scale=SCALE, backend=Backend.XLA)
    prefill = jax.jit(lambda batch, *told: kernels.prefill(batch)(*told, window=window))
    decode = jax.jit(lambda batch, *told: kernels.decode(batch)(*told, window=window))
    q = random(11, HEADS, HEAD_DIM, seed=0)
    k, v = (random(11, KV_HEADS, HEAD_DIM, seed=s) for s in (1, 2))
    zeros = jnp.zeros((BLOCKS, KV_HEADS, BLOCK, HEAD_DIM))
    pages, outputs = (zeros, zeros), []
    for start, stop in ((0, 5), (5, 10)):
        new = (jnp.asarray(k[start:stop]), jnp.asarray(v[start:stop]))
        out, pages = prefill(prefill_batch(start, stop), jnp.asarray(q[start:stop]), new, pages)
        outputs.append(out)
    batch = DecodeBatch(
        token_ids=jnp.zeros(2, jnp.int32),
        positions=jnp.array([10, 0], jnp.int32),
        slots=jnp.concatenate([slots_of([10]), jnp.array([BLOCKS * BLOCK], jnp.int32)]),
        block_tables=jnp.asarray(np.repeat(TABLE, 2, axis=0)),
        context_lens=jnp.array([11, 0], jnp.int32),
    )
    last_q, last_k, last_v = (jnp.asarray(np.concatenate([x[10:], x[10:]])) for x in (q, k, v))
    out, pages = decode(batch, last_q, (last_k, last_v), pages)
    expected = dense(q[:10], k[:10], v[:10], window)
    np.testing.assert_allclose(np.concatenate(outputs), expected, atol=1e-5)
    np.testing.assert_allclose(out[:1], dense(q[10:], k, v, window), atol=1e-5)
    assert (np.asarray(pages[0])[[1, 3, 4]] == 0).all()  # blocks that are not the row's
