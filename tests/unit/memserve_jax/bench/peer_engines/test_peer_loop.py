import io
import json
import sys

from memserve_jax.bench.peer_engines.peer_loop import serve


class Engine:
    version = "engine 1"

    def __init__(self, speed):
        self.speed = speed

    def prefill(self, num_tokens):
        return num_tokens / self.speed


def test_calls_are_answered_until_stdin_ends(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peer", json.dumps({"speed": 10})])
    calls = [{"call": "prefill", "num_tokens": number} for number in (5, 20)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, calls))))
    serve(Engine)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers == [{"version": "engine 1"}, {"seconds": 0.5}, {"seconds": 2.0}]
