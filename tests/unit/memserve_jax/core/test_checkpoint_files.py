"""Model directories that are not there, and files that are not JSON."""

import pytest

from memserve_jax.core.checkpoint_files import checkpoint_dir, read_json, read_json_if_there
from memserve_jax.core.errors import CheckpointError


def test_a_folder(tmp_path):
    assert checkpoint_dir(str(tmp_path)) == tmp_path


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(CheckpointError, match="model: is a file"):
        checkpoint_dir(str(tmp_path / "model"))


@pytest.mark.parametrize("path", ["meta-llama/Llama-3.2-1B", "org/name"])
def test_a_hub_id_is_not_downloaded(path):
    with pytest.raises(CheckpointError, match="nothing is downloaded"):
        checkpoint_dir(path)


@pytest.mark.parametrize("path", ["/no/such", "./no/such", "no/such/folder", "nowhere"])
def test_other_paths_are_just_absent(path):
    with pytest.raises(CheckpointError, match=r"no such directory$"):
        checkpoint_dir(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[1]", "got list, allowed: a JSON object"),
        (b"[" * 200_000, "not JSON"),
    ],
)
def test_bad_json(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"x.json: {message}"):
        read_json(tmp_path / "x.json")


def test_absent_and_unreadable_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.json: no such file"):
        read_json(tmp_path / "x.json")
    assert read_json_if_there(tmp_path / "x.json") == {}
    (tmp_path / "y.json").mkdir()
    with pytest.raises(CheckpointError, match=r"y\.json: cannot read"):
        read_json(tmp_path / "y.json")
