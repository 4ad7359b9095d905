"""A process of another interpreter that answers JSON lines: what the peers of benches share."""

import contextlib
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import TypeVar

from memserve_jax.core.errors import ConfigError, MemServeError

Answer = dict[str, str | float]
Peer = TypeVar("Peer", bound="PeerProcess")


class PeerProcess:
    """A running peer. Close it, or use it as a context."""

    def __init__(
        self, option: str, python: str, script: pathlib.Path, given: Mapping[str, str | int]
    ):
        """Starts the peer and waits until it has said its version.

        Args:
          option: Of the command line, for errors, such as `--baseline llama.cpp`.
          python: An interpreter that has what the script imports.
          script: Of `peer_engines`.
          given: What it is told, as JSON, on its command line.

        Raises:
          ConfigError: it cannot run, or ends before it is ready.
        """
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  # a pipe could fill up
        try:
            self._process = subprocess.Popen(
                [python, str(script), json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
            )
        except OSError as error:
            self._stderr.close()
            raise ConfigError(f"{option}: cannot run {python}: {error.strerror}") from None
        try:
            self.version = str(self._read()["version"])
        except MemServeError as error:
            self.close()
            raise ConfigError(f"{option}: {error}") from None

    def ask(self, call: Mapping[str, str | int]) -> float:
        """Returns the seconds that the peer answers a call with.

        Raises:
          MemServeError: it cannot, for want of memory say, or has ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why it ended is read below
            self._process.stdin.write(json.dumps(call) + "\n")
            self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise MemServeError(str(answer["error"]))
        return float(answer["seconds"])

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # a request that nobody will read
                pipe.close()
        self._stderr.close()

    def __enter__(self: Peer) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()

    def _read(self) -> Answer:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # some engines greet on stdout
                return json.loads(line)
        self._process.wait()
        self._stderr.seek(0)
        last_words = self._stderr.read().strip().splitlines()
        raise MemServeError(f"it ended: {last_words[-1] if last_words else 'without a word'}")
