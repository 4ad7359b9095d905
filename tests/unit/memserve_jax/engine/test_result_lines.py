import jax.numpy as jnp
import numpy as np

from memserve_jax.engine.result_lines import pack, unpack
from memserve_jax.engine.sampling import Sampled


def test_what_is_packed_is_unpacked():
    sampled = Sampled(
        token_ids=jnp.array([5, 2**30], jnp.int32),
        logprobs=jnp.array([-0.25, -jnp.inf], jnp.float32),
        top_token_ids=jnp.array([[5, 6], [7, 8]], jnp.int32),
        top_logprobs=jnp.array([[-0.25, -3.5], [0.0, -1e-30]], jnp.float32),
    )
    result = unpack(np.asarray(pack(sampled)))
    assert result.token_ids == [5, 2**30]
    np.testing.assert_array_equal(result.logprobs, sampled.logprobs)
    np.testing.assert_array_equal(result.top_token_ids, sampled.top_token_ids)
    np.testing.assert_array_equal(result.top_logprobs, sampled.top_logprobs)
