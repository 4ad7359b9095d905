"""Pages of a few layers, every element another number."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.pages import KVPages

LAYERS, PAGES, KV_HEADS, PAGE_SIZE, HEAD_DIM = 3, 6, 2, 16, 64


def make_pages(*, replication=1, dtype="float32", num_pages=PAGES):
    """Returns pages whose heads each stand `replication` times."""
    rng = np.random.default_rng(0)

    def array():
        pages = rng.standard_normal((num_pages, KV_HEADS, PAGE_SIZE, HEAD_DIM))
        return jnp.asarray(np.repeat(pages, replication, axis=1), dtype)

    layers = [(array(), array()) for _ in range(LAYERS)]
    return KVPages(tuple(k for k, _ in layers), tuple(v for _, v in layers))


def make_packed(num_blocks, *, num_layers=LAYERS, dtype="float32"):
    rng = np.random.default_rng(1)
    shape = (num_blocks, num_layers, 2, KV_HEADS, PAGE_SIZE, HEAD_DIM)
    return jnp.asarray(rng.standard_normal(shape), dtype)
