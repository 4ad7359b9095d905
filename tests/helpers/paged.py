"""Sequences laid out in pages, and their attention computed densely in float64.

Everything that no sequence owns is nan: pages beyond a context, the rest of a last page, pages
of nobody. Block table entries past a context name pages that do not exist.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.int8 import quantize

PAGE_SIZE = 16
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


class Rows(NamedTuple):
    """Some rows' contexts, paged, and the same K and V densely."""

    k_pages: jax.Array
    v_pages: jax.Array
    block_tables: jax.Array
    context_lens: jax.Array
    dense: list[tuple[np.ndarray, np.ndarray]]  # per row K and V, f64[U, K, H]


def make_rows(context_lens, *, kv_heads=2, head_dim=64, page_size=PAGE_SIZE, dtype="float32"):
    """Returns rows of random K and V, each in its own, shuffled, pages."""
    rng = np.random.default_rng(len(context_lens))
    width = max(1, -(-max(context_lens) // page_size)) + 1
    num_pages = len(context_lens) * width + 1
    tables = rng.permutation(num_pages - 1).reshape(len(context_lens), width)
    pages = np.full((2, num_pages, kv_heads, page_size, head_dim), np.nan, np.float32)
    dense = []
    for table, length in zip(tables, context_lens, strict=True):
        shape = (2, length, kv_heads, head_dim)
        kv = np.asarray(jnp.asarray(rng.standard_normal(shape), dtype), np.float32)
        for token in range(length):
            pages[:, table[token // page_size], :, token % page_size] = kv[:, token]
        table[-(-length // page_size) :] = num_pages + 7
        dense.append((kv[0].astype(np.float64), kv[1].astype(np.float64)))
    return Rows(
        jnp.asarray(pages[0], dtype),
        jnp.asarray(pages[1], dtype),
        jnp.asarray(tables, jnp.int32),
        jnp.asarray(context_lens, jnp.int32),
        dense,
    )


class Int8Rows(NamedTuple):
    """Rows with their K and V in 8 bits; the scales of what no sequence owns are nan."""

    k_pages: jax.Array
    v_pages: jax.Array
    block_tables: jax.Array
    context_lens: jax.Array
    k_scales: jax.Array
    v_scales: jax.Array

    def dequantized(self):
        """Returns K and V pages as f32."""
        return (
            self.k_pages.astype(jnp.float32) * self.k_scales[..., None],
            self.v_pages.astype(jnp.float32) * self.v_scales[..., None],
        )


def quantize_rows(rows):
    """Returns float32 rows as Int8Rows."""
    (k, k_scales), (v, v_scales) = (quantize(pages) for pages in rows[:2])
    fill = lambda numbers, scales: jnp.where(jnp.isnan(scales)[..., None], jnp.int8(77), numbers)
    return Int8Rows(fill(k, k_scales), fill(v, v_scales), *rows[2:4], k_scales, v_scales)


def make_queries(num_tokens, num_heads, *, head_dim=64, dtype="float32"):
    rng = np.random.default_rng(num_tokens)
    return jnp.asarray(rng.standard_normal((num_tokens, num_heads, head_dim)), dtype)


def attend_densely(query, k, v, position, *, scale, window=None):
    """Returns f64[N, H]: a query f64[N, H] at `position` over K and V f64[U, K, H]."""
    first = 0 if window is None else max(0, position - window + 1)
    k, v = k[first : position + 1], v[first : position + 1]
    out = np.empty(query.shape)
    group = query.shape[0] // k.shape[1]
    for head in range(query.shape[0]):
        logits = k[:, head // group] @ query[head] * scale
        weights = np.exp(logits - logits.max())
        out[head] = weights @ v[:, head // group] / weights.sum()
    return out


def assert_close(got, want):
    """Asserts equality up to what the dtype of `got` can hold."""
    tolerance = TOLERANCE[str(got.dtype)]
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    np.testing.assert_allclose(got, want, atol=tolerance, rtol=tolerance)


def assert_no_race(capfd):
    """Asserts that the Pallas interpreter reported no unordered memory accesses."""
    assert "RACE DETECTED" not in capfd.readouterr().out
