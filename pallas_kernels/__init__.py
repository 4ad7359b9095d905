"""Kernels over paged KV. Dimension letters and op table: `README.md`."""
