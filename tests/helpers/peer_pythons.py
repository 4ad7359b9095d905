"""Interpreters that have other engines.

This one, that of `make oracle`, or those of `MEMSERVE_PEER_PYTHONS=/a/python:/b/python`.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ORACLE = pathlib.Path(__file__).parents[2] / ".venv-oracle" / "bin" / "python"


def python_with(module: str) -> str:
    """Returns an interpreter that can import `module`; skips the test where none is known."""
    named = os.environ.get("MEMSERVE_PEER_PYTHONS", "").split(":")
    for python in (sys.executable, str(ORACLE), *named):
        if python and pathlib.Path(python).exists():
            found = subprocess.run([python, "-c", f"import {module}"], capture_output=True)
            if found.returncode == 0:
                return python
    pytest.skip(f"no interpreter with {module}: `make oracle`, or MEMSERVE_PEER_PYTHONS")
