"""Every GPU kernel, compiled to machine code of a Hopper by XLA's GPU compiler."""

import functools
import math

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
from tests.helpers.aot import REPORT, array
from tests.helpers.aot_gpu import SHARED_BYTES, compile_for_gpu, gpu_mesh
from tests.helpers.gpu import IGNORE_DEPRECATION

pytestmark = pytest.mark.filterwarnings(IGNORE_DEPRECATION)

# One device of Llama-3-8B with TP1; pages of 16 tokens.
PAGES, KV_HEADS, PAGE_SIZE, GROUP = 4096, 8, 16, 4
TOKENS, ROWS, BLOCKS, LAYERS = 512, 32, 64, 4
PREFILL = "ragged_paged_attention"


class Case:
    """Abstract arguments of every op on one device."""

    def __init__(self, dtype, head_dim, *, group=GROUP, width=256):
        self.mesh = gpu_mesh()
        self.page_dtype = jnp.dtype(dtype)
        self.dtype = jnp.dtype("bfloat16") if dtype == "int8" else self.page_dtype
        self.page_shape = (PAGES, KV_HEADS, PAGE_SIZE, head_dim)
        self.page = array(self.mesh, self.page_shape, self.page_dtype)
        self.head_dim, self.group, self.width = head_dim, group, width
        self.scales = {}
        if dtype == "int8":
            scale = array(self.mesh, self.page_shape[:3], jnp.float32)
            self.scales = {"k_scales": scale, "v_scales": scale}

    def ints(self, *shape):
        return array(self.mesh, shape, jnp.int32)

    def attention(self, op, num_tokens, backend, *told):
        q = array(self.mesh, (num_tokens, KV_HEADS * self.group, self.head_dim), self.dtype)
        function = jax.jit(functools.partial(op, scale=0.1, backend=backend))
        tables = self.ints(told[-1].shape[0], self.width)
        return function, (q, self.page, self.page, tables, *told)

    def paged_attention(self, backend, rows=ROWS):
        return self.attention(paged_attention, rows, backend, self.ints(rows))

    def ragged_paged_attention(self, backend):
        told = self.ints(ROWS + 1), self.ints(ROWS)
        return self.attention(ragged_paged_attention, TOKENS, backend, *told)

    def kv_append(self, backend):
        new = array(self.mesh, (TOKENS, KV_HEADS, self.head_dim), self.dtype)
        function = jax.jit(
            functools.partial(kv_append, backend=backend),
            donate_argnums=(0, 1),
            donate_argnames=tuple(self.scales),
        )
        return function, (self.page, self.page, new, new, self.ints(TOKENS))

    def kv_gather(self, backend):
        function = jax.jit(functools.partial(kv_gather, backend=backend))
        return function, (self.layers(), self.ints(BLOCKS))

    def kv_scatter(self, backend):
        packed = array(self.mesh, (BLOCKS, LAYERS, 2, *self.page_shape[1:]), self.page_dtype)
        function = jax.jit(functools.partial(kv_scatter, backend=backend), donate_argnums=0)
        return function, (self.layers(), packed, self.ints(BLOCKS))

    def layers(self):
        return KVPages((self.page,) * LAYERS, (self.page,) * LAYERS)


WRITTEN_ARRAYS = {"kv_append": 2, "kv_scatter": 2 * LAYERS}
WITH_SCALES = ("paged_attention", PREFILL, "kv_append")
SHAPES = [
    *((dtype, head_dim) for dtype in ("bfloat16", "float32") for head_dim in (64, 96, 128, 256)),
    ("int8", 128),
]
KERNELS = [
    *((op, Backend.TRITON) for op in (*WITH_SCALES, "kv_gather", "kv_scatter")),
    *((op, Backend.MOSAIC_GPU) for op in ("kv_gather", "kv_scatter")),
]


def check(compiled, backend, case):
    """Asserts what holds of every kernel: machine code, one kernel, in shared memory, no copies."""
    assert compiled.has_machine_code
    kernels = {Backend.TRITON: compiled.num_triton, Backend.MOSAIC_GPU: compiled.num_mosaic}
    assert kernels.pop(backend) == 1
    assert not any(kernels.values())
    assert compiled.shared_bytes <= SHARED_BYTES
    assert compiled.copies_of(case.page_shape) == 0


@pytest.mark.parametrize(("dtype", "head_dim"), SHAPES)
@pytest.mark.parametrize(("op", "backend"), KERNELS)
def test_compiles(op, backend, dtype, head_dim):
    case = Case(dtype, head_dim)
    function, arguments = getattr(case, op)(backend)
    scales = case.scales if op in WITH_SCALES else {}
    compiled = compile_for_gpu(case.mesh, function, *arguments, **scales)
    check(compiled, backend, case)
    page_bytes = math.prod(case.page_shape) * case.page_dtype.itemsize
    assert compiled.alias_bytes >= WRITTEN_ARRAYS.get(op, 0) * page_bytes
    assert compiled.temp_bytes < page_bytes // 4
    shared = f"{compiled.shared_bytes / 1024:.0f} KiB shared, " if compiled.shared_bytes else ""
    cell = f"{shared}{compiled.temp_bytes / 1e6:.1f} MB scratch"
    aliased = f", {compiled.alias_bytes / 1e6:.0f} MB in place" if compiled.alias_bytes else ""
    REPORT.add("sm_90 (H200)", f"{op}, {backend}", f"{dtype}, {head_dim}", cell + aliased)


@pytest.mark.parametrize("backend", [None, Backend.PALLAS])
@pytest.mark.parametrize(("op", "backend_taken"), KERNELS[:5])
def test_a_gpu_takes_the_kernels_by_itself(op, backend_taken, backend):
    case = Case("bfloat16", 128)
    function, arguments = getattr(case, op)(backend)
    check(compile_for_gpu(case.mesh, function, *arguments), backend_taken, case)


@pytest.mark.parametrize(
    ("rows", "context_tokens", "group"),
    [(1, 128, 1), (1, 32768, 8), (8, 4096, 4), (64, 32768, 7), (256, 4096, 4)],
)
def test_decode_compiles_over_batches_contexts_and_groups(rows, context_tokens, group):
    case = Case("bfloat16", 128, group=group, width=context_tokens // PAGE_SIZE)
    function, arguments = case.paged_attention(Backend.TRITON, rows)
    check(compile_for_gpu(case.mesh, function, *arguments), Backend.TRITON, case)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("op", ["paged_attention", PREFILL])
def test_mosaic_attention_compiles(op, head_dim):
    case = Case("bfloat16", head_dim)
    function, arguments = getattr(case, op)(Backend.MOSAIC_GPU)
    compiled = compile_for_gpu(case.mesh, function, *arguments)
    check(compiled, Backend.MOSAIC_GPU, case)
    cell = f"{compiled.temp_bytes / 1e6:.1f} MB scratch"
    REPORT.add("sm_90 (H200)", f"{op}, mosaic_gpu", f"bfloat16, {head_dim}", cell)
