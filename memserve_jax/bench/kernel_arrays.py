"""A case's arrays on the first device, and an op bound to them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memserve_jax.bench.kernel_case import KernelCase
from pallas_kernels.pages import KVPages

BASE_PAGES = 64  # drawn; the pool repeats them, in another order for each array

Run = Callable[[], Any]  # one call; its result is what to wait for


@dataclass(slots=True)
class KernelArrays:
    """What ops take. `pages` is rebound by those that donate it."""

    pages: KVPages
    tables: jax.Array  # i32[B, P]: every page once, but for the last one, which no row has
    context_lens: jax.Array  # i32[B]
    query_starts: jax.Array  # i32[B + 1]
    q: jax.Array  # [T, N, H]
    k: jax.Array  # [T, K, H], to append
    v: jax.Array
    slots: jax.Array  # i32[T]: the last tokens of their rows
    packed: jax.Array  # [n, L, 2, K, S, H]; n = 0 but for `kv_scatter`
    spare: np.ndarray  # the page that no row has: K of the first layer [K, S, H]


def make_arrays(case: KernelCase, seed: int = 0) -> KernelArrays:
    """Returns arrays of random numbers for a case."""
    shape, dtype = case.shape, jnp.dtype(case.dtype)
    num_pages = case.batch * case.row_pages + 1
    keys = iter(jax.random.split(jax.random.key(seed), 2 * case.num_layers + 4))

    def draw(*sizes: int) -> jax.Array:
        return jax.random.normal(next(keys), sizes, jnp.float32).astype(dtype)

    def pool(index: int) -> jax.Array:
        base = draw(min(num_pages, BASE_PAGES), shape.kv_heads, case.page_size, shape.head_dim)
        return jnp.take(base, (jnp.arange(num_pages) + index) % base.shape[0], axis=0)

    ks = tuple(pool(index) for index in range(case.num_layers))
    vs = tuple(pool(index) for index in range(case.num_layers))
    order = np.random.default_rng(seed).permutation(num_pages - 1).astype(np.int32)
    tables = order.reshape(case.batch, case.row_pages)
    each = case.num_tokens // case.batch
    positions = np.arange(case.context - each, case.context)
    slots = tables[:, positions // case.page_size] * case.page_size + positions % case.page_size
    is_attention, is_append = "attention" in case.op, case.op == "kv_append"
    num_new = case.num_tokens if is_append else 0
    num_blocks = tables.size if case.op == "kv_scatter" else 0
    sizes = (num_blocks, case.num_layers, 2, shape.kv_heads, case.page_size, shape.head_dim)
    return KernelArrays(
        pages=KVPages(ks, vs),
        tables=jnp.asarray(tables),
        context_lens=jnp.full((case.batch,), case.context, jnp.int32),
        query_starts=jnp.arange(case.batch + 1, dtype=jnp.int32) * each,
        q=draw(case.num_tokens if is_attention else 0, shape.num_heads, shape.head_dim),
        k=draw(num_new, shape.kv_heads, shape.head_dim),
        v=draw(num_new, shape.kv_heads, shape.head_dim),
        slots=jnp.asarray(slots.reshape(-1).astype(np.int32)),
        packed=draw(*sizes),
        spare=np.asarray(ks[0][-1]),
    )


def renew(case: KernelCase, arrays: KernelArrays) -> None:
    """Makes the pages again if an op that failed has taken them."""
    if any(pages.is_deleted() for pages in jax.tree.leaves(arrays.pages)):
        arrays.pages = make_arrays(case).pages


def scale_of(case: KernelCase) -> float:
    """Returns the factor of the logits."""
    return case.shape.head_dim**-0.5


def bind(case: KernelCase, arrays: KernelArrays, op: Callable[..., Any]) -> Run:
    """Returns one call of `op`, compiled, on the arrays.

    Args:
      case: Whose arguments it takes.
      arrays: Of that case. What the op donates is rebound there.
      op: Any implementation of the case's op.
    """
    scale = scale_of(case)
    match case.op:
        case "paged_attention":
            attend = jax.jit(functools.partial(op, scale=scale))
            return lambda: attend(
                arrays.q, arrays.pages.k[0], arrays.pages.v[0], arrays.tables, arrays.context_lens
            )
        case "ragged_paged_attention":
            prefill = jax.jit(functools.partial(op, scale=scale))
            starts, lens = arrays.query_starts, arrays.context_lens
            return lambda: prefill(
                arrays.q, arrays.pages.k[0], arrays.pages.v[0], arrays.tables, starts, lens
            )
        case "kv_gather":
            gather, blocks = jax.jit(op), arrays.tables.reshape(-1)
            return lambda: gather(arrays.pages, blocks)
        case _:
            return _bind_writing(case, arrays, op)


def _bind_writing(case: KernelCase, arrays: KernelArrays, op: Callable[..., Any]) -> Run:
    blocks = arrays.tables.reshape(-1)

    def write(pages: KVPages, *new: jax.Array) -> KVPages:
        if case.op == "kv_scatter":
            return op(pages, *new)
        k, v = op(pages.k[0], pages.v[0], *new)
        return KVPages((k,), (v,))

    written = jax.jit(write, donate_argnums=0)
    appended = (arrays.k, arrays.v, arrays.slots)
    new = (arrays.packed, blocks) if case.op == "kv_scatter" else appended

    def run() -> KVPages:
        arrays.pages = written(arrays.pages, *new)
        return arrays.pages

    return run
