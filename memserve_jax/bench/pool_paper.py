"""What MemServe's figures 9, 10 and 13 show (arXiv 2406.17565 v3), read off their vector graphics.

Their machine: a DGX H800, Llama-2-13B at a tensor parallelism of 2, vLLM 0.4.0, blocks of 16
tokens; so the index's microseconds can be compared with ours, the shares of figure 13 only by
their shape.
"""

from memserve_jax.core.types import Tier

ALLOC_US = {1: 6.2, 8: 10.8, 16: 15.6, 32: 24.6, 64: 42.0, 128: 76.4, 256: 144.9}  # by blocks
FREE_US = {1: 5.9, 8: 10.2, 16: 12.5, 32: 19.4, 64: 31.6, 128: 55.3, 256: 105.7}

# Figure 9 by blocks and by per cent cached.
INSERT_US = {
    64: {0: 152.0, 20: 121.0, 50: 132.0, 80: 107.0, 100: 93.0},
    128: {0: 301.0, 20: 232.0, 50: 243.0, 80: 195.0, 100: 161.0},
    256: {0: 586.0, 20: 694.0, 50: 436.0, 80: 374.0, 100: 492.0},
}
MATCH_US = {
    64: {0: 2.0, 20: 12.0, 50: 34.0, 80: 34.0, 100: 41.0},
    128: {0: 3.0, 20: 19.0, 50: 175.0, 80: 75.0, 100: 108.0},
    256: {0: 3.0, 20: 44.0, 50: 121.0, 80: 166.0, 100: 332.0},
}

# Figure 10 by tokens of a prompt of which nothing is cached.
HASH_INDEX_MS = {
    32: 0.14, 64: 0.24, 128: 0.44, 256: 1.03, 512: 2.88, 1024: 9.0, 2048: 31.4, 4096: 120.0,
}  # fmt: skip
RADIX_INDEX_MS = {
    32: 0.10, 64: 0.10, 128: 0.12, 256: 0.15, 512: 0.22, 1024: 0.36, 2048: 0.63, 4096: 1.18,
}  # fmt: skip


def _by_percent(*shares: int) -> dict[int, float]:
    return {10 * place: float(share) for place, share in enumerate(shares, start=1)}


# Figure 13: TTFT in per cent of the TTFT without a cache, by tier, by tokens of the prompt and
# by per cent cached; batch size 1.
TTFT_PERCENT = {
    Tier.HBM: {
        1024: _by_percent(107, 104, 92, 89, 76, 74, 68, 67, 64, 65),
        2048: _by_percent(100, 92, 84, 78, 69, 68, 54, 46, 35, 35),
        4096: _by_percent(103, 94, 91, 86, 73, 60, 54, 49, 30, 23),
    },
    Tier.HOST: {
        1024: _by_percent(107, 104, 92, 89, 76, 85, 83, 83, 82, 86),
        2048: _by_percent(102, 96, 91, 87, 79, 81, 69, 63, 54, 57),
        4096: _by_percent(106, 99, 98, 95, 84, 74, 69, 66, 50, 45),
    },
}
