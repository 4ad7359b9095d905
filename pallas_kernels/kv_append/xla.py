"""Writing new tokens' K and V into pages: one scatter each, which XLA does in place."""

from pallas_kernels.kv_append.reference import kv_append

__all__ = ["kv_append"]
