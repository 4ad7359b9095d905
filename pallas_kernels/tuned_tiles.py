"""What was measured on real devices: `tuned/<device kind>.json`, read and written.

Only measured data may be committed; where there is no file, `tiles.py` works tiles out.
"""

import datetime
import functools
import json
import pathlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import jax

FOLDER = pathlib.Path(__file__).parent / "tuned"


@dataclass(frozen=True, slots=True)
class Measured:
    """The fastest tile of one op and shape on one kind of device."""

    op: str
    shape: str  # `tiles.Shape.key`
    tile: Mapping[str, int]  # fields of the op's tile class
    us: float  # a call, the median
    jax: str  # its version when it was measured
    date: str  # ISO 8601


def file_of(device_kind: str) -> str:
    """Returns the file name for a kind of device: `nvidia_h200.json` for "NVIDIA H200"."""
    return "_".join(device_kind.lower().replace("-", " ").split()) + ".json"


@functools.cache
def read(device_kind: str) -> Mapping[tuple[str, str], Measured]:
    """Returns what was measured on a kind of device, by op and shape; nothing if nothing was.

    Raises:
      ValueError: The file is not what `write` writes.
    """
    path = FOLDER / file_of(device_kind)
    return _parse(path.read_text(), path.name) if path.is_file() else {}


def _parse(text: str, name: str) -> Mapping[tuple[str, str], Measured]:
    try:
        entries = [Measured(**entry) for entry in json.loads(text)["entries"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"tuned/{name}: {error}") from error
    return {(entry.op, entry.shape): entry for entry in entries}


def write(folder: pathlib.Path, device_kind: str, found: list[Measured]) -> pathlib.Path:
    """Writes what was found to a device's file in `folder`, in place of older entries.

    Args:
      folder: Where; `FOLDER`, for `read` to find it in the next process.
      device_kind: As JAX calls it.
      found: What was measured; entries of other shapes stay.

    Returns:
      The file.
    """
    path = folder / file_of(device_kind)
    entries = dict(_parse(path.read_text(), path.name)) if path.exists() else {}
    entries |= {(entry.op, entry.shape): entry for entry in found}
    listed = [asdict(entries[key]) for key in sorted(entries)]
    content = {"device_kind": device_kind, "entries": listed}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def measured_now(op: str, shape: str, tile: Mapping[str, int], us: float) -> Measured:
    """Returns an entry for a measurement of this moment, by the jax in use.

    Args:
      op: Its name.
      shape: `tiles.Shape.key`.
      tile: Fields of the tile, as `dataclasses.asdict` gives them.
      us: A call, the median.
    """
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Measured(op, shape, tile, us, jax.__version__, today)
