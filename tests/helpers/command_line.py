"""Runs `memserve` in this process and says how it ended."""

import io
import sys
from dataclasses import dataclass

import pytest

from memserve_jax.cli import main


@dataclass(frozen=True)
class Ended:
    """A finished command."""

    status: int
    out: str
    err: str


class CommandLine:
    """`memserve` with its standard streams caught."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Ended:
        """Runs `memserve ARGUMENTS` with `stdin` piped in."""
        pipe = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        self._monkeypatch.setattr(sys, "stdin", pipe)
        with pytest.raises(SystemExit) as end:
            main(arguments)
        out, err = self._capsys.readouterr()
        return Ended(int(end.value.code or 0), out, err)
