"""Softmax in pieces is softmax, whatever the pieces hide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import online_softmax


@pytest.mark.parametrize("piece", [1, 3, 8])
def test_pieces_add_up_to_softmax(piece):
    rng = np.random.default_rng(piece)
    logits, v = rng.standard_normal((2, 4, 8)) * 9, rng.standard_normal((2, 8, 5))
    visible = rng.random((1, 4, 8)) < 0.5
    visible[0, 0], visible[0, 1] = False, [False] * 7 + [True]  # nothing; only the last

    state = online_softmax.start(jnp.zeros((2, 4, 5)))
    for start in range(0, 8, piece):
        part = slice(start, start + piece)
        poisoned = np.where(visible[..., part], logits[..., part], np.nan)
        state, weights = online_softmax.weigh(
            state, jnp.asarray(poisoned, jnp.float32), jnp.asarray(visible[..., part])
        )
        seen = jnp.einsum("bxu,buh->bxh", weights, jnp.asarray(v[:, part], jnp.float32))
        state = state._replace(weighted=state.weighted + seen)

    hidden = jnp.where(visible, jnp.asarray(logits, jnp.float32), -jnp.inf)
    want = jnp.einsum("bxu,buh->bxh", jax.nn.softmax(hidden), jnp.asarray(v, jnp.float32))
    got = online_softmax.finish(state)
    np.testing.assert_allclose(got[:, 1:], want[:, 1:], atol=1e-5)
    assert not got[:, 0].any()
