"""Options that fill the config: flag before `--set` before file."""

import pathlib

import pytest

from memserve_jax.cli.server_options import load_given, say, warm_up_progress
from memserve_jax.core.errors import ConfigError


def test_flags_go_before_overrides_and_those_before_the_file(tmp_path: pathlib.Path):
    file = tmp_path / "cluster.yaml"
    file.write_text("tp: 2\ntopology: 2c\nport: 1\nmodel: {path: from-file}\n")
    config = load_given(
        {
            "config": str(file),
            "overrides": ("port=2", "topology=1p1d"),
            "port": 3,
            "model": None,
            "tp": None,
        },
        process="p0",
    )
    assert (config.tp, config.topology, config.port) == (2, "1p1d", 3)
    assert config.model.path == "from-file"


def test_a_wrong_flag_is_a_config_error():
    with pytest.raises(ConfigError, match="tp: got 0"):
        load_given({"config": None, "overrides": (), "tp": 0}, process="p0")


def test_what_is_said_is_out_at_once(capsys: pytest.CaptureFixture[str]):
    say("ready")
    assert capsys.readouterr().out == "ready\n"


def test_there_is_no_bar_where_nobody_looks():
    with warm_up_progress() as progress:
        assert progress is None


def test_there_is_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with warm_up_progress() as progress:
        assert progress is not None
        progress(1, 2, "decode, rows 1")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "warming up" in captured.err
