"""Another engine as a process of its own, timed in turns with ours."""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from types import MappingProxyType, TracebackType

from memserve_jax.core.errors import ConfigError, MemServeError

FOLDER = pathlib.Path(__file__).parent / "peer_engines"
SCRIPTS: Mapping[str, str] = MappingProxyType(
    {"transformers": "transformers_peer.py", "llama.cpp": "llama_cpp_peer.py"}
)


class PeerEngine:
    """A running peer. Close it, or use it as a context."""

    def __init__(self, name: str, *, python: str, folder: str, threads: int, dtype: str):
        """Starts the peer and waits until it has loaded the model.

        Args:
          name: One of `SCRIPTS`.
          python: An interpreter that has the engine.
          folder: A Hugging Face checkpoint.
          threads: It may use.
          dtype: Of weights and activations.

        Raises:
          ConfigError: there is no such peer, or the interpreter does not have it.
        """
        if name not in SCRIPTS:
            raise ConfigError(f"--baseline: got {name!r}, allowed: {', '.join(SCRIPTS)}")
        given = json.dumps({"folder": folder, "threads": threads, "dtype": dtype})
        self.name = name
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  # a pipe could fill up
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, str(FOLDER / SCRIPTS[name]), given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
            )
        except OSError as error:
            self._stderr.close()
            raise ConfigError(f"--baseline {name}: cannot run {python}: {error.strerror}") from None
        try:
            self.version = str(self._read()["version"])
        except MemServeError as error:
            self.close()
            raise ConfigError(f"--baseline {name}: {error}") from None

    def prefill_s(self, num_tokens: int) -> float:
        """Returns the seconds of one prompt."""
        return self._ask(call="prefill", num_tokens=num_tokens)

    def decode_s(self, batch: int, context: int, num_steps: int) -> float:
        """Returns the seconds of one greedy step, the mean of `num_steps`."""
        return self._ask(call="decode", batch=batch, context=context, num_steps=num_steps)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # a request that nobody will read
                pipe.close()
        self._stderr.close()

    def __enter__(self) -> "PeerEngine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()

    def _ask(self, **call: object) -> float:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(call) + "\n")
        stdin.flush()
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, str | float]:
        stdout = self._process.stdout
        assert stdout is not None
        for line in stdout:
            if line.startswith("{"):  # some engines greet on stdout
                return json.loads(line)
        self._process.wait()
        self._stderr.seek(0)
        last_words = self._stderr.read().strip().splitlines()
        raise MemServeError(f"it ended: {last_words[-1] if last_words else 'without a word'}")
