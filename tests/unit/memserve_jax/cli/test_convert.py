"""`memserve convert`: what it says of a directory that is no model."""

import pytest


@pytest.mark.parametrize(
    ("source", "message"),
    [("no/model", "no/model: no such directory"), (".", "config.json")],
)
def test_what_is_no_model(memserve, tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    ended = memserve("convert", source, "out")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("memserve convert: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
