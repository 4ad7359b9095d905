"""The mode follows the load, and not too closely."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve_jax.core.config import MemPoolSection
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import TransferMode
from memserve_jax.engine.transfer_mode import ModeSwitch, mode_under_load

BY_LAYER, AGGREGATED = TransferMode.BY_LAYER, TransferMode.BY_REQUEST_AGGREGATED


@pytest.mark.parametrize(
    ("queued_tokens", "current", "wanted"),
    [
        (0, BY_LAYER, BY_LAYER),
        (0, AGGREGATED, BY_LAYER),
        (100, AGGREGATED, BY_LAYER),
        (101, AGGREGATED, AGGREGATED),
        (101, BY_LAYER, BY_LAYER),
        (400, BY_LAYER, BY_LAYER),
        (401, BY_LAYER, AGGREGATED),
        (10**9, AGGREGATED, AGGREGATED),
    ],
)
def test_by_layer_below_and_aggregated_above(queued_tokens, current, wanted):
    assert mode_under_load(queued_tokens, current, low_tokens=100, high_tokens=400) is wanted


@given(
    loads=st.lists(st.integers(0, 1000), max_size=30),
    low=st.integers(0, 500),
    gap=st.integers(0, 500),
)
def test_every_switch_crosses_the_gap(loads, low, gap):
    switch = ModeSwitch(
        MemPoolSection(transfer_mode="auto", auto_low_tokens=low, auto_high_tokens=low + gap)
    )
    extremes = [BY_LAYER] + [
        AGGREGATED if load > low + gap else BY_LAYER
        for load in loads
        if load > low + gap or load <= low
    ]
    for load in loads:
        switch.observe(load)
    assert switch.mode is extremes[-1]
    assert switch.num_switches == sum(a is not b for a, b in itertools.pairwise(extremes))


@pytest.mark.parametrize("mode", list(TransferMode))
def test_a_mode_that_was_set_stays(mode):
    switch = ModeSwitch(MemPoolSection(transfer_mode=mode.value))
    for load in (0, 10**6, 0):
        switch.observe(load)
        assert switch.mode is mode
    assert switch.num_switches == 0
    assert switch.is_always_by_layer == switch.may_be_by_layer == (mode is BY_LAYER)


def test_auto_may_be_either():
    switch = ModeSwitch(MemPoolSection(transfer_mode="auto"))
    assert switch.may_be_by_layer
    assert not switch.is_always_by_layer


@pytest.mark.parametrize(
    ("mode", "spans", "has_cells"),
    [
        ("by_layer", (7, 2, 1), False),
        ("auto", (7, 2, 1), False),
        ("by_request", (7,), True),
        ("by_request_aggregated", (7,), False),
    ],
)
def test_what_transfers_are_made_of(mode, spans, has_cells):
    layout = KVLayout(
        num_layers=7, num_kv_heads=1, block_size_tokens=2, head_dim=2, dtype="float32"
    )
    switch = ModeSwitch(MemPoolSection(transfer_mode=mode, layer_groups=4))
    copies = switch.copies(layout)
    assert (copies.spans, copies.has_cells) == (spans, has_cells)
