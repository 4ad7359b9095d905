"""Files on DISK: whole or absent, and only ours are ever removed."""

import os

import pytest

from memserve_jax.mempool.disk_folder import BlockName, DiskFolder

ORIGIN, OTHER = bytes(16), bytes([7] * 16)
BLOCKS = [BlockName(bytes([i] * 16), bytes([i + 1] * 16)) for i in range(4)]


def folder_in(path, origin=ORIGIN):
    return DiskFolder(path, origin, file_bytes=4)


def test_what_was_written_is_found_again_in_order_of_use(tmp_path):
    first = folder_in(tmp_path)
    for age, block in enumerate(BLOCKS):
        first.write(block, b"1234")
        first.touch(block, 1_000_000_000 * (10 - age))
    first.close()
    again = folder_in(tmp_path)
    assert again.scan().blocks == BLOCKS[::-1]
    assert again.read(BLOCKS[2]) == b"1234"
    again.remove(BLOCKS[2])
    again.remove(BLOCKS[2])
    assert BLOCKS[2] not in again.scan().blocks
    with pytest.raises(FileNotFoundError):
        again.read(BLOCKS[2])
    again.close()


def test_a_death_half_way_through_a_write_leaves_nothing_to_be_found(tmp_path):
    folder = folder_in(tmp_path)
    folder.write(BLOCKS[0], b"1234")
    place = tmp_path / f"blocks-{ORIGIN.hex()}"
    (place / f"{BLOCKS[1].file}.part").write_bytes(b"12")
    found = folder.scan()
    assert (found.blocks, found.num_refused) == ([BLOCKS[0]], 0)
    assert [path.name for path in place.iterdir()] == [BLOCKS[0].file]
    folder.close()


def test_files_cut_off_or_of_other_models_are_refused_and_removed(tmp_path):
    other = folder_in(tmp_path, OTHER)
    other.write(BLOCKS[0], b"1234")
    other.close()
    folder = folder_in(tmp_path)
    folder.write(BLOCKS[1], b"123")
    found = folder.scan()
    assert (found.blocks, found.num_refused) == ([], 2)
    assert not (tmp_path / f"blocks-{OTHER.hex()}").exists()
    folder.close()


def test_what_is_not_ours_stays(tmp_path):
    place = tmp_path / f"blocks-{OTHER.hex()}"
    place.mkdir(parents=True)
    mine = [tmp_path / "thesis.txt", place / "thesis.txt", tmp_path / "blocks-of-wood"]
    for path in mine:
        path.write_text("years of work")
    folder = folder_in(tmp_path)
    folder.scan()
    folder.close()
    assert all(path.read_text() == "years of work" for path in mine)


def test_two_living_instances_cannot_share_a_folder(tmp_path):
    folder = folder_in(tmp_path)
    with pytest.raises(OSError):
        folder_in(tmp_path)
    folder.close()
    folder_in(tmp_path).close()


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    folder = folder_in(tmp_path)
    folder.write(BLOCKS[0], b"1234")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        folder.write(BLOCKS[0], b"5678")
    assert folder.read(BLOCKS[0]) == b"1234"
    assert len(list((tmp_path / f"blocks-{ORIGIN.hex()}").iterdir())) == 1
    folder.close()
