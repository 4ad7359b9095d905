"""Tensors of a directory's `*.safetensors`, as memory-mapped views: nothing is read early."""

import json
import math
import pathlib

import ml_dtypes
import numpy as np

from memserve_jax.core.errors import CheckpointError

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LENGTH_BYTES = 8  # a file starts with its header's length, little-endian
_MAX_HEADER_BYTES = 100_000_000


class TensorFiles:
    """The tensors of one checkpoint directory by name; each file is mapped at first use."""

    def __init__(self, directory: str):
        """Finds the directory's files.

        Raises:
          CheckpointError: neither a single file nor an index, or an unreadable index.
        """
        self._directory = pathlib.Path(directory)
        self._files: dict[str, dict[str, np.ndarray]] = {}
        self._file_of = self._locate()

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._file_of)

    def tensor(self, name: str) -> np.ndarray:
        """Returns a read-only view of a tensor's bytes on disk.

        Raises:
          CheckpointError: the tensor, or the file the index names for it, is missing; the
            file is corrupt; its dtype is not supported.
        """
        if name not in self._file_of:
            raise CheckpointError(f"{self._directory}: missing tensor {name}")
        file = self._file_of[name]
        if file not in self._files:
            self._files[file] = _map(self._directory / file)
        if name not in self._files[file]:
            raise CheckpointError(f"{self._directory / file}: missing tensor {name}")
        return self._files[file][name]

    def _locate(self) -> dict[str, str]:
        index = self._directory / INDEX
        if index.exists():
            return _read_index(index)
        if not (self._directory / SINGLE).exists():
            raise CheckpointError(f"{self._directory}: missing {SINGLE} or {INDEX}")
        self._files[SINGLE] = _map(self._directory / SINGLE)
        return dict.fromkeys(self._files[SINGLE], SINGLE)


def _read_index(path: pathlib.Path) -> dict[str, str]:
    try:
        file_of = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in file_of.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not an index of safetensors ({error!r})") from None


def _map(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns views of all tensors of one file, whose header it checks."""
    try:
        content = np.memmap(path, mode="r", dtype=np.uint8)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing, but named by the index") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot read: {error}") from None
    if len(content) < _LENGTH_BYTES:
        raise CheckpointError(f"{path}: truncated: {len(content)} bytes, no header")
    length = int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
    body = _LENGTH_BYTES + length
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: corrupt: a header of {length} bytes")
    if body > len(content):
        raise CheckpointError(f"{path}: truncated: {len(content)} bytes, the header needs {body}")
    try:
        header = json.loads(content[_LENGTH_BYTES:body].tobytes())
        entries = {n: _Entry(**entry) for n, entry in header.items() if n != "__metadata__"}
    except (ValueError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: corrupt: the header is not one of safetensors") from None
    return {name: entry.view(content[body:], f"{path}: {name}") for name, entry in entries.items()}


class _Entry:
    """A header's line on one tensor."""

    def __init__(self, *, dtype: str, shape: list[int], data_offsets: list[int]):
        self._dtype, self._shape = str(dtype), tuple(int(size) for size in shape)
        self._start, self._stop = (int(offset) for offset in data_offsets)

    def view(self, body: np.ndarray, where: str) -> np.ndarray:
        if self._dtype not in DTYPES:
            raise CheckpointError(f"{where}: dtype {self._dtype}, allowed: {', '.join(DTYPES)}")
        dtype = np.dtype(DTYPES[self._dtype])
        if self._stop - self._start != math.prod(self._shape) * dtype.itemsize or self._start < 0:
            raise CheckpointError(f"{where}: corrupt: offsets do not fit the shape {self._shape}")
        if self._stop > len(body):
            raise CheckpointError(
                f"{where}: truncated: ends at byte {self._stop} of a body of {len(body)}"
            )
        return body[self._start : self._stop].view(dtype).reshape(self._shape)
