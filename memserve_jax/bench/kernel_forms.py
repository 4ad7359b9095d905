"""The forms an op comes in on this platform: our kernels, XLA, the reference, JAX's own."""

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention as tpu_attention

from memserve_jax.bench.kernel_arrays import KernelArrays, Run, bind, scale_of
from memserve_jax.bench.kernel_case import KernelCase
from pallas_kernels.backend import Backend
from pallas_kernels.dispatch import KERNELS
from pallas_kernels.kv_append.op import kv_append
from pallas_kernels.kv_gather.op import kv_gather
from pallas_kernels.kv_scatter.op import kv_scatter
from pallas_kernels.paged_attention.op import paged_attention
from pallas_kernels.ragged_paged_attention.op import ragged_paged_attention

REFERENCE_BYTES = 256 << 20  # beyond that, the reference is not worth waiting for
JAX_OWN = "jax"

_OPS: Mapping[str, Callable[..., Any]] = {
    "paged_attention": paged_attention,
    "ragged_paged_attention": ragged_paged_attention,
    "kv_append": kv_append,
    "kv_gather": kv_gather,
    "kv_scatter": kv_scatter,
}


def form_names(case: KernelCase, platform: str, memory_bytes: int) -> dict[str, str | None]:
    """Returns the forms of the case's op, ours first, each with why it is left out or None.

    Args:
      case: What is to be measured.
      platform: "cpu", "tpu" or "gpu".
      memory_bytes: That the device has.
    """
    found: dict[str, str | None] = {}
    for backend in KERNELS[case.op].get(platform, ()):
        found[str(backend)] = None
    found[str(Backend.XLA)] = None
    if "attention" not in case.op:
        found[str(Backend.REFERENCE)] = "is the XLA form"
        return found
    most = min(REFERENCE_BYTES, memory_bytes - case.held_bytes)
    needs = f"needs {case.reference_bytes / 2**20:.0f} MiB besides"
    found[str(Backend.REFERENCE)] = None if case.reference_bytes <= most else needs
    if case.op == "paged_attention" and platform in ("tpu", "gpu"):
        fits = case.held_bytes + case.pool_bytes <= memory_bytes
        found[JAX_OWN] = None if fits else "its own copy of the pages does not fit"
    return found


def make_form(name: str, case: KernelCase, arrays: KernelArrays, platform: str) -> Run:
    """Returns one call of a form that `form_names` names."""
    if name == JAX_OWN:
        return _jax_gpu(case, arrays) if platform == "gpu" else _jax_tpu(case, arrays)
    return bind(case, arrays, functools.partial(_OPS[case.op], backend=Backend(name)))


def _heads_first(arrays: KernelArrays) -> tuple[jax.Array, jax.Array]:
    """Returns K and V pages as JAX's ops want them: `[K, M, S, H]`, a copy."""
    k, v = arrays.pages.k[0], arrays.pages.v[0]
    return k.transpose(1, 0, 2, 3), v.transpose(1, 0, 2, 3)


def _divisor(number: int, most: int) -> int:
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)


def _jax_gpu(case: KernelCase, arrays: KernelArrays) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jax 0.11 announces its end
        module = importlib.import_module("jax.experimental.pallas.ops.gpu.paged_attention")
    k, v = _heads_first(arrays)
    splits = _divisor(case.row_pages, 16)
    each = _divisor(case.row_pages // splits, 8)
    q = arrays.q * jnp.asarray(scale_of(case), arrays.q.dtype)
    return lambda: module.paged_attention(
        q, k, v, arrays.tables, arrays.context_lens, pages_per_compute_block=each, k_splits=splits
    )


def _jax_tpu(case: KernelCase, arrays: KernelArrays) -> Run:
    k, v = _heads_first(arrays)
    q = arrays.q * jnp.asarray(scale_of(case), arrays.q.dtype)
    each = _divisor(case.row_pages, max(1, 256 // case.page_size))
    return lambda: tpu_attention(
        q, k, v, arrays.context_lens, arrays.tables, pages_per_compute_block=each
    )
