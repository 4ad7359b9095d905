"""The largest error of an op's result against float64, on a sample of rows."""

from typing import Any

import jax
import numpy as np

from memserve_jax.bench.kernel_arrays import KernelArrays, scale_of
from memserve_jax.bench.kernel_case import KernelCase

SAMPLE = 4  # rows, tokens or blocks


def max_error(case: KernelCase, arrays: KernelArrays, result: Any) -> float:
    """Returns the largest absolute difference; 0.0 is what a copy must have.

    Args:
      case: Which op was called.
      arrays: On which it was.
      result: Of the op; its pages, where it writes them.
    """
    match case.op:
        case "paged_attention" | "ragged_paged_attention":
            pairs = _attention(case, arrays, result)
        case "kv_append":
            pairs = _appended(case, arrays)
        case "kv_gather":
            pairs = _packed(arrays, result)
        case _:
            pairs = _packed(arrays, arrays.packed)
    if case.op in ("kv_append", "kv_scatter"):
        pairs.append((_f64(arrays.pages.k[0][-1]), arrays.spare.astype(np.float64)))
    errors = np.asarray([np.abs(got - want).max() for got, want in pairs])
    return float(errors.max())  # nan, where one is


def _f64(array: jax.Array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def _sample(count: int) -> list[int]:
    return sorted({int(at) for at in np.linspace(0, count - 1, min(count, SAMPLE))})


Pairs = list[tuple[np.ndarray, np.ndarray]]  # got, wanted


def _attention(case: KernelCase, arrays: KernelArrays, result: jax.Array) -> Pairs:
    each = case.num_tokens // case.batch
    found: Pairs = []
    for token in _sample(case.num_tokens):
        row, new = divmod(token, each)
        visible = case.context - each + new + 1
        table = arrays.tables[row]
        k, v = (
            _f64(pages[table]).swapaxes(0, 1).reshape(case.shape.kv_heads, -1, case.shape.head_dim)
            for pages in (arrays.pages.k[0], arrays.pages.v[0])
        )
        want = attend(_f64(arrays.q[token]), k[:, :visible], v[:, :visible], scale_of(case))
        found.append((_f64(result[token]), want))
    return found


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Returns one token's attention `[N, H]` of `q` over `k` and `v`, `[K, U, H]`."""
    grouped = q.reshape(k.shape[0], -1, q.shape[-1])  # K G H
    logits = np.einsum("KGH,KUH->KGU", grouped, k) * scale
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("KGU,KUH->KGH", weights, v).reshape(q.shape)


def _appended(case: KernelCase, arrays: KernelArrays) -> Pairs:
    slots, found = np.asarray(arrays.slots), []
    for token in _sample(case.num_tokens):
        page, offset = divmod(int(slots[token]), case.page_size)
        for pages, new in ((arrays.pages.k[0], arrays.k), (arrays.pages.v[0], arrays.v)):
            found.append((_f64(pages[page, :, offset]), _f64(new[token])))
    return found


def _packed(arrays: KernelArrays, packed: jax.Array) -> Pairs:
    blocks, found = np.asarray(arrays.tables).reshape(-1), []
    for index in _sample(len(blocks)):
        for layer in range(len(arrays.pages.k)):
            for side, pages in enumerate(arrays.pages):
                got = packed[index, layer, side]
                found.append((_f64(got), _f64(pages[layer][int(blocks[index])])))
    return found
