"""Calls per mode: the paper's figure 5, and figure 11's bench leaves nothing behind."""

import pytest

from memserve_jax.bench.transfer_moves import RECEIVER, SENDER, MoveBench
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import TransferMode

LAYOUT = KVLayout(num_layers=3, num_kv_heads=1, block_size_tokens=2, head_dim=2, dtype="float32")


@pytest.mark.parametrize(
    ("mode", "num_calls"),
    [
        (TransferMode.BY_LAYER, 2),
        (TransferMode.BY_REQUEST, 4 * 2 * 3),
        (TransferMode.BY_REQUEST_AGGREGATED, 1),
    ],
)
def test_a_prompt_of_four_blocks(mode, num_calls):
    bench = MoveBench(LAYOUT, num_tokens=7, num_groups=2)
    move = bench.measure(mode, num_rounds=2)
    assert (move.num_calls, move.num_blocks, len(move.seconds)) == (num_calls, 4, 2)
    assert move.num_bytes == 4 * LAYOUT.block_bytes
    assert min(move.seconds) <= move.median_s <= max(move.seconds)
    assert bench._pools[SENDER].num_leased == bench._pools[RECEIVER].num_leased == 0
    bench.close()
