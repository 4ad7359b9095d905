"""The files of the DISK tier of one instance: names, atomic writes, what a restart finds.

    FOLDER/lock                                  held while the instance lives
    FOLDER/blocks-ORIGIN/NAME-BEFORE.safetensors one block, and the block that it follows

Nothing but what is named so is ever removed, so that a folder given by mistake stays whole.
"""

import contextlib
import fcntl
import os
import pathlib
import re
from dataclasses import dataclass

_SUFFIX = ".safetensors"
_PART = ".part"  # of a file that is being written
_FOLDER = re.compile(r"blocks-[0-9a-f]{32}")
_FILE = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})\.safetensors")


@dataclass(frozen=True, slots=True)
class BlockName:
    """What a block on DISK is called."""

    name: bytes
    before: bytes  # the block, or the salt's root, that it follows

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.name.hex()}-{self.before.hex()}{_SUFFIX}"


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder held when it was opened."""

    blocks: list[BlockName]  # used longest ago first
    num_refused: int  # files of another model or layout, or cut off; they are gone now


class DiskFolder:
    """One instance's blocks of one origin, as files. Any thread; one writer at a time."""

    def __init__(self, folder: pathlib.Path, origin: bytes, file_bytes: int):
        """Makes the folder if need be, and locks it.

        Args:
          folder: Of the instance, and of no other living one.
          origin: Of the blocks kept; files of others are refused.
          file_bytes: Size of every file.

        Raises:
          OSError: it cannot be made or written, or another living instance has it.
        """
        self._root = folder
        self._blocks = folder / f"blocks-{origin.hex()}"
        self._file_bytes = file_bytes
        self._blocks.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise

    def scan(self) -> Found:
        """Returns the whole files found, and removes the others.

        Raises:
          OSError: the folder cannot be read, or a file not be removed.
        """
        num_refused = 0
        for folder in self._folders():
            if folder != self._blocks:
                num_refused += _clear(folder)
        found: list[tuple[int, BlockName]] = []
        with os.scandir(self._blocks) as entries:
            for entry in entries:
                match = _FILE.fullmatch(entry.name)
                if match is None:
                    if entry.name.endswith(_PART):
                        os.unlink(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
                if status.st_size != self._file_bytes:
                    num_refused += 1
                    os.unlink(entry.path)
                    continue
                name, before = (bytes.fromhex(part) for part in match.groups())
                found.append((status.st_mtime_ns, BlockName(name, before)))
        found.sort(key=lambda each: each[0])
        return Found([block for _, block in found], num_refused)

    def write(self, block: BlockName, content: bytes) -> None:
        """Writes a file, whole or not at all; what it was before is replaced.

        Raises:
          OSError: it cannot be written.
        """
        part = self._blocks / f"{block.file}{_PART}"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
            os.replace(part, self._blocks / block.file)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def read(self, block: BlockName) -> bytes:
        """Returns a file's content, cut off where it is longer than a file should be.

        Raises:
          OSError: there is none, or it cannot be read.
        """
        with open(self._blocks / block.file, "rb") as file:
            return file.read(self._file_bytes + 1)

    def touch(self, block: BlockName, time_ns: int) -> None:
        """Notes when a block was used, for `scan` after a restart. Failing is no matter."""
        with contextlib.suppress(OSError):
            os.utime(self._blocks / block.file, ns=(time_ns, time_ns))

    def remove(self, block: BlockName) -> None:
        """Removes a file if it is there.

        Raises:
          OSError: it cannot be removed.
        """
        (self._blocks / block.file).unlink(missing_ok=True)

    def close(self) -> None:
        """Gives up the lock; the files stay."""
        os.close(self._lock)

    def _folders(self) -> list[pathlib.Path]:
        return [each for each in self._root.iterdir() if _FOLDER.fullmatch(each.name)]


def _clear(folder: pathlib.Path) -> int:
    """Removes the blocks in a folder of another origin; returns how many there were."""
    num_removed = 0
    for path in list(folder.iterdir()):
        if _FILE.fullmatch(path.name) or path.name.endswith(_PART):
            path.unlink()
            num_removed += 1
    with contextlib.suppress(OSError):  # it holds something that is not ours
        folder.rmdir()
    return num_removed
