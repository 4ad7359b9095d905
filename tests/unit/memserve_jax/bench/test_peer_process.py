import sys

import pytest

from memserve_jax.bench.peer_process import PeerProcess
from memserve_jax.core.errors import ConfigError, MemServeError

TALKER = """
import json, sys
print("hello from a library")
print(json.dumps({"version": "talker of " + json.loads(sys.argv[1])["name"]}), flush=True)
for line in sys.stdin:
    call = json.loads(line)["call"]
    if call == "end":
        sys.exit("it is enough")
    print(json.dumps({"error": "no room"} if call == "fail" else {"seconds": 0.5}), flush=True)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "talker.py"
    path.write_text(TALKER)
    return path


def test_a_peer_answers_fails_and_ends(script):
    with PeerProcess("--it", sys.executable, script, {"name": "x"}) as peer:
        assert peer.version == "talker of x"
        assert peer.ask({"call": "time"}) == 0.5
        with pytest.raises(MemServeError, match="no room"):
            peer.ask({"call": "fail"})
        assert peer.ask({"call": "time"}) == 0.5  # a refusal is not the end
        with pytest.raises(MemServeError, match="it ended: it is enough"):
            peer.ask({"call": "end"})
        with pytest.raises(MemServeError, match="it ended: it is enough"):
            peer.ask({"call": "time"})


def test_a_peer_that_does_not_start_is_named(script, tmp_path):
    with pytest.raises(ConfigError, match="--it: cannot run /no/python: No such"):
        PeerProcess("--it", "/no/python", script, {})
    with pytest.raises(ConfigError, match="--it: it ended: KeyError: 'name'"):
        PeerProcess("--it", sys.executable, script, {})
