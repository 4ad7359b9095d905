"""Packing pages into one array: one gather per layer and side."""

from pallas_kernels.kv_gather.reference import kv_gather

__all__ = ["kv_gather"]
