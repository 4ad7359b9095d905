"""Runs where an interpreter with torch is known: see `tests/helpers/peer_pythons.py`."""

import pytest

from memserve_jax.bench.kernel_peer import TorchPeer
from tests.helpers.peer_pythons import python_with
from tests.unit.memserve_jax.bench.test_kernel_case import case


@pytest.mark.slow
def test_it_times_decode_and_prefill():
    with TorchPeer(python_with("torch")) as peer:
        assert "torch" in peer.version
        assert peer.seconds(case("paged_attention"), 2) > 0
        assert peer.seconds(case("ragged_paged_attention"), 2) > 0
