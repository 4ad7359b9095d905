import sys

import pytest

from memserve_jax.bench import peer_engine
from memserve_jax.bench.peer_engine import PeerEngine
from memserve_jax.core.errors import ConfigError, MemServeError

TALKER = """
import json, sys
given = json.loads(sys.argv[1])
print("hello from a library")
print(json.dumps({"version": "talker of " + given["folder"]}), flush=True)
for line in sys.stdin:
    call = json.loads(line)
    if call["call"] == "decode":
        sys.exit("decoding is not my thing")
    print(json.dumps({"seconds": call["num_tokens"] / 10}), flush=True)
"""


@pytest.fixture
def talker(monkeypatch, tmp_path):
    (tmp_path / "talker.py").write_text(TALKER)
    (tmp_path / "mute.py").write_text("raise ModuleNotFoundError('no such engine')")
    monkeypatch.setattr(peer_engine, "FOLDER", tmp_path)
    scripts = {"talker": "talker.py", "mute": "mute.py"}
    monkeypatch.setattr(peer_engine, "SCRIPTS", scripts)


def start(name: str, python: str = "") -> PeerEngine:
    return PeerEngine(name, python=python, folder="/m", threads=1, dtype="float32")


def test_a_peer_is_asked_and_answers(talker):
    with start("talker", sys.executable) as peer:
        assert peer.version == "talker of /m"
        assert peer.prefill_s(20) == 2.0
        with pytest.raises(MemServeError, match="decoding is not my thing"):
            peer.decode_s(1, 2, 3)


@pytest.mark.parametrize(
    ("name", "python", "said"),
    [
        ("nobody", "", "--baseline: got 'nobody', allowed: talker, mute"),
        ("mute", "", "--baseline mute: it ended: ModuleNotFoundError: no such engine"),
        ("talker", "/no/python", "--baseline talker: cannot run /no/python: No such file"),
    ],
)
def test_a_peer_that_cannot_be_had_is_named(talker, name, python, said):
    with pytest.raises(ConfigError) as caught:
        start(name, python)
    assert str(caught.value).startswith(said)
