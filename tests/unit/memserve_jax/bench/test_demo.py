import contextlib
import json

import pytest

from memserve_jax.bench import demo
from memserve_jax.bench.local_server import ServerFailedError
from tests.helpers.fake_generate import FakeControl, FakeGenerate, served


class OtherAnswers(FakeGenerate):
    """Answers with other tokens than `FakeGenerate`."""

    def answer(self, request, context):
        for message in super().answer(request, context):
            message.token_ids[0] += 1
            yield message


def fake_server(odd_caching=None):
    """Returns a stand-in for `local_server`; the setting `odd_caching` answers otherwise."""

    @contextlib.contextmanager
    def server(command, *, log_path, num_cpu_devices):
        assert num_cpu_devices == 4
        caching = command[command.index("--caching") + 1]
        topology = command[command.index("--topology") + 1]
        kind = OtherAnswers if caching == odd_caching else FakeGenerate
        servicer = kind(caches=caching in ("on", "pd_caching_3"))
        sent = {"prefill": 500, "decode": 100} if topology == "1p1d" else {"colocated": 0}
        with served(servicer, FakeControl(sent)) as target:
            yield target

    return server


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demo_compares_the_four_settings(scratch, monkeypatch, capsys):
    monkeypatch.setattr(demo, "local_server", fake_server())
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert "Greedy answers agree, token for token, in all 4 settings" in printed
    assert "untrained model's answer" in printed and "x" * 96 in printed.replace("\n", "")
    run = json.loads((scratch / "out" / "demo.json").read_text())
    assert run["problems"] == []
    assert [entry["name"] for entry in run["settings"]] == [s.name for s in demo.SETTINGS]
    assert [entry["kv_bytes_to_decode"] for entry in run["settings"]] == [0, 0, 500, 500]
    assert all(len(entry["requests"]) == 18 for entry in run["settings"])


def test_the_demo_fails_where_one_setting_answers_otherwise(scratch, monkeypatch, capsys):
    monkeypatch.setattr(demo, "local_server", fake_server(odd_caching="pd_basic"))
    assert demo.main() == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "1P1D: visitor-10 turn 0: greedy tokens differ from PD's" in printed
    assert json.loads((scratch / "out" / "demo.json").read_text())["problems"]


def test_the_demo_says_why_a_server_did_not_start(scratch, monkeypatch, capsys):
    @contextlib.contextmanager
    def broken(command, *, log_path, num_cpu_devices):
        raise ServerFailedError("memserve serve: ended before it was ready")
        yield

    monkeypatch.setattr(demo, "local_server", broken)
    assert demo.main() == 1
    assert "demo: memserve serve: ended before it was ready" in capsys.readouterr().out


def test_the_demo_says_that_a_server_went_away(scratch, monkeypatch, capsys):
    @contextlib.contextmanager
    def without_control(command, *, log_path, num_cpu_devices):
        with served(FakeGenerate()) as target:
            yield target

    monkeypatch.setattr(demo, "local_server", without_control)
    assert demo.main() == 1
    assert "demo: UNIMPLEMENTED" in capsys.readouterr().out


def test_what_a_terminal_would_act_upon_is_not_printed():
    assert demo._printable("a\x1b[2J\nb") == "a [2J b"
