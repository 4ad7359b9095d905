"""Reads the small files of a model directory, with errors that name the file."""

import json
import pathlib
import re
from typing import Any, cast

from memserve_jax.core.errors import CheckpointError

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def checkpoint_dir(path: str) -> pathlib.Path:
    """Returns `path` as a folder that exists.

    Raises:
      CheckpointError: it is a file, absent, or reads like a hub id.
    """
    folder = pathlib.Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{path}: is a file, allowed: a model directory")
    hint = ""
    if _HUB_ID.fullmatch(path):
        hint = "; if it is a hub id: nothing is downloaded, give the directory of a local copy"
    raise CheckpointError(f"{path}: no such directory{hint}")


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in `file`.

    Raises:
      CheckpointError: absent, unreadable, not UTF-8, not JSON, or not an object.
    """
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot read: {error.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: got {type(values).__name__}, allowed: a JSON object")
    return cast(dict[str, Any], values)


def read_json_if_there(file: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in `file`, or an empty one where there is no file.

    Raises:
      CheckpointError: as `read_json`.
    """
    return read_json(file) if file.exists() else {}
