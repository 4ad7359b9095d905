import sys

import pytest

from memserve_jax.bench import kernel_peer
from memserve_jax.bench.kernel_peer import TorchPeer
from memserve_jax.core.errors import ConfigError, MemServeError
from tests.unit.memserve_jax.bench.test_kernel_case import case

TALKER = """
import json, sys
print("hello from a library")
print(json.dumps({"version": "talker on " + json.loads(sys.argv[1])["device"]}), flush=True)
for line in sys.stdin:
    call = json.loads(line)
    if call["is_prefill"]:
        print(json.dumps({"error": "out of memory"}), flush=True)
    else:
        print(json.dumps({"seconds": call["num_calls"] / 10}), flush=True)
"""


def start(monkeypatch, tmp_path, text: str) -> TorchPeer:
    script = tmp_path / "peer.py"
    script.write_text(text)
    monkeypatch.setattr(kernel_peer, "SCRIPT", script)
    return TorchPeer(sys.executable)


def test_a_peer_is_asked_and_answers(monkeypatch, tmp_path):
    with start(monkeypatch, tmp_path, TALKER) as peer:
        assert peer.version == "talker on cpu"
        assert peer.takes(case("paged_attention"))
        assert not peer.takes(case("kv_append"))
        assert peer.seconds(case("paged_attention"), 3) == 0.3
        with pytest.raises(MemServeError, match="out of memory"):
            peer.seconds(case("ragged_paged_attention"), 1)


def test_a_peer_that_cannot_be_had_is_named(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="--torch-python: it ended: torch has no CUDA"):
        start(monkeypatch, tmp_path, "import sys; sys.exit('torch has no CUDA')")
    with pytest.raises(ConfigError, match="--torch-python: cannot run /no/python: No such"):
        TorchPeer("/no/python")
