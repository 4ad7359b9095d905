"""Files that are read again when they change, and only then."""

import pathlib

import pytest

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.watched_files import WatchedFiles


class Reader:
    """Reads a number, and counts how often."""

    def __init__(self, path: pathlib.Path):
        self.path, self.num_reads = path, 0

    def __call__(self) -> int:
        self.num_reads += 1
        try:
            return int(self.path.read_text())
        except (OSError, ValueError):
            raise ConfigError("no number") from None


def test_a_change_is_seen_and_nothing_is_read_without_one(tmp_path):
    path = tmp_path / "number"
    path.write_text("1")
    read = Reader(path)
    files = WatchedFiles([str(path)], read)
    assert (files.value(), files.value(), files.version(), read.num_reads) == (1, 1, 0, 1)
    path.write_text("22")
    assert (files.version(), files.value(), read.num_reads) == (1, 22, 2)


def test_what_was_good_holds_while_the_files_are_not(tmp_path, caplog):
    path = tmp_path / "number"
    path.write_text("1")
    read = Reader(path)
    files = WatchedFiles([str(path)], read)
    path.write_text("no")
    assert (files.value(), files.version()) == (1, 0)
    path.unlink()
    assert (files.value(), files.version()) == (1, 0)
    assert files.value() == 1
    assert read.num_reads == 3, "read once for each change"
    assert [record.message for record in caplog.records] == [
        "no number; what was read before holds"
    ] * 2
    path.write_text("333")
    assert (files.value(), files.version()) == (333, 1)


def test_what_cannot_be_read_at_first_is_an_error(tmp_path):
    path = tmp_path / "number"
    with pytest.raises(ConfigError, match="no number"):
        WatchedFiles([str(path)], Reader(path))
