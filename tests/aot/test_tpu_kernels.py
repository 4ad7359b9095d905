"""Every TPU kernel, compiled by the TPU compiler for every generation."""

import functools
import re

import jax.numpy as jnp
import pytest

from pallas_kernels.backend import Backend
from pallas_kernels.kv_append.op import kv_append
from pallas_kernels.kv_gather.op import kv_gather
from pallas_kernels.kv_scatter.op import kv_scatter
from pallas_kernels.paged_attention.op import paged_attention
from pallas_kernels.pages import KVPages
from pallas_kernels.ragged_paged_attention.op import ragged_paged_attention
from tests.helpers.aot import GENERATIONS, REPORT, array, chip_mesh, compile_for

# One device of a Llama-3-8B instance with TP1: 2048 pages of 16 tokens.
PAGES, KV_HEADS, PAGE_SIZE, GROUP, WIDTH = 2048, 8, 16, 4, 128
ROWS, TOKENS, BLOCKS, LAYERS = 32, 512, 64, 4

REFUSED: dict[tuple[str, str, int], str] = {}  # op, dtype, head dim -> the compiler's words


class Case:
    """Abstract arguments of every op on one device."""

    def __init__(self, generation, dtype, head_dim):
        self.mesh = chip_mesh(generation)
        self.dtype = jnp.dtype(dtype)
        self.page_shape = (PAGES, KV_HEADS, PAGE_SIZE, head_dim)
        self.head_dim = head_dim

    def floats(self, *shape):
        return array(self.mesh, shape, self.dtype)

    def ints(self, *shape):
        return array(self.mesh, shape, jnp.int32)

    def pages(self):
        return self.floats(*self.page_shape)

    def paged_attention(self):
        op = functools.partial(paged_attention, scale=0.1, backend=Backend.PALLAS)
        q = self.floats(ROWS, KV_HEADS * GROUP, self.head_dim)
        return op, (q, self.pages(), self.pages(), self.ints(ROWS, WIDTH), self.ints(ROWS)), ()

    def ragged_paged_attention(self):
        op = functools.partial(ragged_paged_attention, scale=0.1, backend=Backend.PALLAS)
        q = self.floats(TOKENS, KV_HEADS * GROUP, self.head_dim)
        told = self.ints(ROWS, WIDTH), self.ints(ROWS + 1), self.ints(ROWS)
        return op, (q, self.pages(), self.pages(), *told), ()

    def kv_append(self):
        op = functools.partial(kv_append, backend=Backend.PALLAS)
        new = self.floats(TOKENS, KV_HEADS, self.head_dim)
        return op, (self.pages(), self.pages(), new, new, self.ints(TOKENS)), (0, 1)

    def kv_gather(self):
        op = functools.partial(kv_gather, backend=Backend.PALLAS)
        return op, (self.all_pages(), self.ints(BLOCKS)), ()

    def kv_scatter(self):
        op = functools.partial(kv_scatter, backend=Backend.PALLAS)
        packed = self.floats(BLOCKS, LAYERS, 2, *self.page_shape[1:])
        return op, (self.all_pages(), packed, self.ints(BLOCKS)), (0,)

    def all_pages(self):
        layers = tuple(self.pages() for _ in range(LAYERS))
        return KVPages(layers, layers)


OPS = ("paged_attention", "ragged_paged_attention", "kv_append", "kv_gather", "kv_scatter")


@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda generation: generation.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("head_dim", [128])
@pytest.mark.parametrize("op", OPS)
def test_compiles(op, head_dim, dtype, generation):
    case = Case(generation, dtype, head_dim)
    function, arguments, donated = getattr(case, op)()
    table = f"{op}: bytes moved, VMEM, estimated time"
    row = f"{dtype}, head dim {head_dim}"
    refused = REFUSED.get((op, dtype, head_dim))
    try:
        compiled = compile_for(case.mesh, function, *arguments, donate_argnums=donated)
    except Exception as error:
        words = str(error).splitlines()[0]
        REPORT.add(table, row, generation.name, f"refused: {words}")
        if refused is None or not re.search(refused, words):
            raise
        return
    REPORT.add(table, row, generation.name, describe(compiled))
    assert refused is None, "the compiler takes now what it refused"
    assert compiled.num_kernels == 1
    assert compiled.copies_of(case.page_shape) == 0
    page_bytes = case.dtype.itemsize * PAGES * KV_HEADS * PAGE_SIZE * head_dim
    if donated:
        arrays = 2 if op == "kv_append" else 2 * LAYERS
        assert compiled.alias_bytes >= arrays * page_bytes
    assert compiled.temp_bytes < page_bytes // 4 or op == "ragged_paged_attention"


def describe(compiled):
    """Returns a cell of the report."""
    return (
        f"{compiled.moved_bytes / 1e6:.1f} MB, {compiled.vmem_bytes / 2**20:.2f} MiB, "
        f"{compiled.seconds * 1e6:.0f} us"
    )
