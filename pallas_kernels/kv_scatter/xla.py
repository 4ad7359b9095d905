"""Unpacking a packed array into pages: one scatter per layer and side, in place."""

from pallas_kernels.kv_scatter.reference import kv_scatter

__all__ = ["kv_scatter"]
