"""Every TPU kernel, compiled by the TPU compiler for every generation."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.backend import Backend
from pallas_kernels.kv_append.op import kv_append
from pallas_kernels.kv_gather.op import kv_gather
from pallas_kernels.kv_scatter.op import kv_scatter
from pallas_kernels.paged_attention.op import paged_attention
from pallas_kernels.pages import KVPages
from pallas_kernels.ragged_paged_attention.op import ragged_paged_attention
from tests.helpers.aot import (
    GENERATIONS,
    REPORT,
    V5E,
    array,
    chip_mesh,
    compile_for,
    row_major,
    tpu_limits,
)

# One device of Llama-3-8B: 2 of its kv heads with TP4, all 8 with TP1.
GROUP, POOL_TOKENS, CONTEXT_TOKENS = 4, 131_072, 2048
ROWS, TOKENS, BLOCKS, LAYERS = 32, 512, 64, 4

# Of the pages: dtype, kv heads, head dim. All of them in every run on the generation with the
# least memory; on the others most are left to slow runs, to save minutes.
SHAPES = [
    *((dtype, 2, head_dim) for dtype in ("bfloat16", "float32") for head_dim in (64, 96, 128, 256)),
    *(("int8", 2, head_dim) for head_dim in (64, 128)),
    ("bfloat16", 8, 128),
]
FEWER_SHAPES = [("bfloat16", 2, 64), ("bfloat16", 2, 128), ("int8", 2, 128)]
GRID = [
    pytest.param(
        generation,
        *shape,
        marks=() if generation is V5E or shape in FEWER_SHAPES else pytest.mark.slow,
    )
    for generation in GENERATIONS
    for shape in SHAPES
]
# What a compiler refuses: (op, *shape, generation) -> its words, as a pattern.
REFUSED: dict[tuple[str, str, int, int, str], str] = {}


class Case:
    """Abstract arguments of every op on one device, pages as serving holds them."""

    def __init__(self, generation, dtype, kv_heads, head_dim):
        self.mesh = chip_mesh(generation)
        self.page_dtype = jnp.dtype(dtype)
        self.dtype = jnp.dtype("bfloat16") if dtype == "int8" else self.page_dtype
        self.page_size = 32 if dtype == "int8" else 16
        num_pages = POOL_TOKENS // self.page_size
        self.page_shape = (num_pages, kv_heads, self.page_size, head_dim)
        self.page = row_major(array(self.mesh, self.page_shape, self.page_dtype))
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.scales = {}
        if dtype == "int8":
            scale = row_major(array(self.mesh, self.page_shape[:3], jnp.float32))
            self.scales = {"k_scales": scale, "v_scales": scale}

    def queries(self, num_tokens):
        return array(self.mesh, (num_tokens, self.kv_heads * GROUP, self.head_dim), self.dtype)

    def ints(self, *shape):
        return array(self.mesh, shape, jnp.int32)

    def attention(self, op, q, *told):
        tables = self.ints(ROWS, CONTEXT_TOKENS // self.page_size)
        function = functools.partial(op, scale=0.1, backend=Backend.PALLAS)
        return jax.jit(function), (q, self.page, self.page, tables, *told)

    def paged_attention(self):
        return self.attention(paged_attention, self.queries(ROWS), self.ints(ROWS))

    def ragged_paged_attention(self):
        told = self.ints(ROWS + 1), self.ints(ROWS)
        return self.attention(ragged_paged_attention, self.queries(TOKENS), *told)

    def kv_append(self):
        new = array(self.mesh, (TOKENS, self.kv_heads, self.head_dim), self.dtype)
        pools = (self.page, self.page, *self.scales.values())
        function = jax.jit(
            functools.partial(kv_append, backend=Backend.PALLAS),
            donate_argnums=(0, 1),
            donate_argnames=tuple(self.scales),
            out_shardings=tuple(pool.format for pool in pools),
        )
        return function, (self.page, self.page, new, new, self.ints(TOKENS))

    def kv_gather(self):
        function = jax.jit(functools.partial(kv_gather, backend=Backend.PALLAS))
        return function, (self.all_pages(), self.ints(BLOCKS))

    def kv_scatter(self):
        packed = array(self.mesh, (BLOCKS, LAYERS, 2, *self.page_shape[1:]), self.page_dtype)
        function = jax.jit(
            functools.partial(kv_scatter, backend=Backend.PALLAS),
            donate_argnums=0,
            out_shardings=self.page.format,
        )
        return function, (self.all_pages(), row_major(packed), self.ints(BLOCKS))

    def all_pages(self):
        layers = (self.page,) * LAYERS
        return KVPages(layers, layers)


WRITTEN_ARRAYS = {"kv_append": 2, "kv_scatter": 2 * LAYERS}
WITH_SCALES = ("paged_attention", "ragged_paged_attention", "kv_append")
OPS = (*WITH_SCALES, "kv_gather", "kv_scatter")


@pytest.mark.parametrize(
    ("generation", "dtype", "kv_heads", "head_dim"),
    GRID,
    ids=lambda value: getattr(value, "name", str(value)),
)
@pytest.mark.parametrize("op", OPS)
def test_compiles(op, generation, dtype, kv_heads, head_dim):
    case = Case(generation, dtype, kv_heads, head_dim)
    function, arguments = getattr(case, op)()
    scales = case.scales if op in WITH_SCALES else {}
    table = f"{op}: bytes moved, VMEM, time at full bandwidth or rate"
    row = f"{dtype} pages, {kv_heads} x {head_dim}"
    refused = REFUSED.get((op, dtype, kv_heads, head_dim, generation.name))
    try:
        compiled = compile_for(case.mesh, function, *arguments, **scales)
    except Exception as error:
        words = str(error).splitlines()[0]
        REPORT.add(table, row, generation.name, f"refused: {words}")
        if refused is None or not re.search(refused, words):
            raise
        return
    cell = (
        f"{compiled.kernel_bytes / 1e6:.1f} MB, {compiled.vmem_bytes / 2**20:.2f} MiB, "
        f"{compiled.kernel_seconds * 1e6:.0f} us"
    )
    REPORT.add(table, row, generation.name, cell)
    assert refused is None, "the compiler takes now what it refused"
    assert compiled.num_kernels == 1
    assert compiled.copies_of(case.page_shape) == 0
    page_bytes = math.prod(case.page_shape) * case.page_dtype.itemsize
    assert compiled.alias_bytes >= WRITTEN_ARRAYS.get(op, 0) * page_bytes
    assert compiled.copies_of(case.page_shape[:3]) == 0  # nor of the scales
    assert compiled.temp_bytes < page_bytes
    assert compiled.vmem_bytes < tpu_limits(case.mesh).vmem_capacity_bytes
