"""The cases of `bench kernels`: an op on one shape, and what it moves, multiplies and holds."""

import itertools
from dataclasses import dataclass

import jax.numpy as jnp

OPS = ("paged_attention", "ragged_paged_attention", "kv_append", "kv_gather", "kv_scatter")
COPY_LAYERS = 4  # that `kv_gather` and `kv_scatter` pack
MOST_NEW_TOKENS = 32768  # of one prefill, all rows together
HEADROOM = 1.25  # of what a case holds, for what programs need besides


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """The heads of a model's attention."""

    name: str
    num_heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """An op on rows that all have the same context, on pages in random order.

    Decode attends with one token a row; prefill with all tokens of all rows. `kv_append` writes
    one token a row, or the whole prompt of a single row. Gather and scatter move all pages.
    """

    op: str
    shape: HeadShape
    batch: int
    context: int  # tokens of each row
    page_size: int
    dtype: str

    @property
    def name(self) -> str:
        """For people: op, shape, batch, context, page size."""
        sizes = f"batch {self.batch}, context {self.context}, page {self.page_size}"
        return f"{self.op} {self.shape.name}, {sizes}"

    @property
    def row_pages(self) -> int:
        """P."""
        return -(-self.context // self.page_size)

    @property
    def num_layers(self) -> int:
        """L: how many layers the op sees."""
        return COPY_LAYERS if self.op in ("kv_gather", "kv_scatter") else 1

    @property
    def num_tokens(self) -> int:
        """T: query tokens, or tokens to append."""
        if self.op == "ragged_paged_attention" or (self.op == "kv_append" and self.batch == 1):
            return self.batch * self.context
        return self.batch

    @property
    def token_bytes(self) -> int:
        """Of K and V of one token in one layer."""
        size = jnp.dtype(self.dtype).itemsize
        return 2 * self.shape.kv_heads * self.shape.head_dim * size

    @property
    def pool_bytes(self) -> int:
        """Of all pages, one of which no row has."""
        num_pages = self.batch * self.row_pages + 1
        return num_pages * self.page_size * self.token_bytes * self.num_layers

    @property
    def query_bytes(self) -> int:
        """Of the queries; the result has as many."""
        size = jnp.dtype(self.dtype).itemsize
        return self.num_tokens * self.shape.num_heads * self.shape.head_dim * size

    @property
    def num_bytes(self) -> int:
        """Read and written at least."""
        match self.op:
            case "kv_append":
                return 2 * self.num_tokens * self.token_bytes
            case "kv_gather" | "kv_scatter":
                tokens = self.batch * self.row_pages * self.page_size
                return 2 * tokens * self.token_bytes * self.num_layers
            case _:
                return self.batch * self.context * self.token_bytes + 2 * self.query_bytes

    @property
    def num_flops(self) -> float:
        """Multiply-adds, counted twice; none in a copy."""
        a_pair = 4.0 * self.shape.num_heads * self.shape.head_dim
        match self.op:
            case "paged_attention":
                return a_pair * self.batch * self.context
            case "ragged_paged_attention":
                return a_pair * self.batch * self.context * (self.context + 1) / 2
            case _:
                return 0.0

    @property
    def held_bytes(self) -> int:
        """Device memory that the case needs, its results included."""
        match self.op:
            case "kv_append":
                held = self.pool_bytes + self.num_tokens * self.token_bytes
            case "kv_gather" | "kv_scatter":
                held = 3 * self.pool_bytes
            case _:
                held = self.pool_bytes + 2 * self.query_bytes
        return int(HEADROOM * held)

    @property
    def reference_bytes(self) -> int:
        """Temporaries of the reference of attention: K and V in float32 for each query."""
        size = jnp.dtype(self.dtype).itemsize
        return 3 * self.num_tokens * self.context * self.token_bytes * 4 // size

    def refusal(self, memory_bytes: int) -> str | None:
        """Returns why the case is not measured on a device with so much memory; None: it is."""
        if self.op == "ragged_paged_attention" and self.num_tokens > MOST_NEW_TOKENS:
            return f"{self.num_tokens} new tokens, more than {MOST_NEW_TOKENS}"
        if self.held_bytes > memory_bytes:
            held, there = self.held_bytes / 2**30, memory_bytes / 2**30
            return f"needs {held:.1f} GiB, the device has {there:.1f}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelGrid:
    """Which cases: all combinations."""

    shapes: tuple[HeadShape, ...]
    dtype: str
    ops: tuple[str, ...] = OPS
    batches: tuple[int, ...] = (1, 16, 64, 256)
    contexts: tuple[int, ...] = (128, 1024, 4096, 8192, 32768)
    pages: tuple[int, ...] = (16, 32, 64)

    def cases(self) -> list[KernelCase]:
        """Returns them, those of an op together."""
        every = itertools.product(self.ops, self.shapes, self.pages, self.batches, self.contexts)
        return [
            KernelCase(
                op=op,
                shape=shape,
                batch=batch,
                context=context,
                page_size=page,
                dtype=self.dtype,
            )
            for op, shape, page, batch, context in every
        ]
