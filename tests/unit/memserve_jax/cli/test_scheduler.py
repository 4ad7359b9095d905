"""`memserve scheduler`: what the flags mean, and one clear line for what they cannot."""

import pytest

from memserve_jax.cli import main
from memserve_jax.cli import scheduler as module


def run(capsys, *arguments: str) -> tuple[object, list[str]]:
    """Returns the exit code and the lines on stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["scheduler", *arguments])
    return ended.value.code, capsys.readouterr().err.splitlines()


def test_flags_go_before_set_before_file(capsys, tmp_path, monkeypatch):
    file = tmp_path / "c.yaml"
    file.write_text("port: 1\nhost: 127.0.0.2\nscheduler: {policy: session, max_in_flight: 7}\n")
    seen = []
    monkeypatch.setattr(module, "run", lambda config, announce: seen.append(config))
    overrides = "--set", "scheduler.policy=least_load", "--set", "port=2"
    assert run(capsys, "--config", str(file), *overrides, "--port", "3") == (0, [])
    (config,) = seen
    assert (config.port, config.host) == (3, "127.0.0.2")
    assert (config.scheduler.policy, config.scheduler.max_in_flight) == ("least_load", 7)
    assert run(capsys, "--model", "/m") == (0, [])
    assert (seen[1].model.path, seen[1].port) == ("/m", 50051)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--port", "70000"], "70000"),
        (["--config", "/none.yaml"], "/none.yaml: cannot read"),
        (["--set", "scheduler.policy=fastest"], "scheduler.policy: got 'fastest'"),
        (["--set", "scheduler.polcy=x"], "scheduler.polcy: unknown key, did you mean policy?"),
        (["--set", "policy"], "allowed: section.key=value"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--host", "192.0.2.1", "--port", "0"], "host: '192.0.2.1'"),
    ],
)
def test_wrong_ones_exit_2_with_one_line(capsys, arguments, words):
    code, lines = run(capsys, *arguments)
    lines = [line for line in lines if " I scheduler" not in line]
    assert code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("memserve scheduler: ") and words in lines[0]
