"""Which pages the TPU attention kernels take, and how many of them a turn does."""

import jax.numpy as jnp
import pytest

from pallas_kernels import page_stream


def pages(kv_heads=8, page_size=32, head_dim=128, dtype=jnp.bfloat16):
    return jnp.zeros((1, kv_heads, page_size, head_dim), dtype)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_common_shapes_are_taken(head_dim, dtype):
    assert page_stream.refusal(pages(head_dim=head_dim, dtype=dtype)) is None


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"head_dim": 80}, "head dim 80"),
        ({"head_dim": 320}, "head dim 320"),
        ({"page_size": 8}, "pages of 8 tokens"),
        ({"dtype": jnp.float16}, "pages of float16"),
        ({"kv_heads": 64, "page_size": 256}, "do not fit into VMEM"),
    ],
)
def test_others_are_refused_with_a_reason(shape, reason):
    assert reason in page_stream.refusal(pages(**shape))


@pytest.mark.parametrize(
    ("kv_heads", "width", "tokens"), [(8, 128, 256), (8, 3, 96), (64, 128, 64)]
)
def test_a_turn_fits_the_table_and_the_buffers(kv_heads, width, tokens):
    pool = pages(kv_heads)
    k_buffer, v_buffer, *_ = page_stream.scratch_shapes((pool, pool), width)
    assert k_buffer.shape == v_buffer.shape == (2, kv_heads, tokens, 128)
