"""Another engine as a process of its own, timed in turns with ours."""

import pathlib
import sys
from collections.abc import Mapping
from types import MappingProxyType

from memserve_jax.bench.peer_process import PeerProcess
from memserve_jax.core.errors import ConfigError

FOLDER = pathlib.Path(__file__).parent / "peer_engines"
SCRIPTS: Mapping[str, str] = MappingProxyType(
    {"transformers": "transformers_peer.py", "llama.cpp": "llama_cpp_peer.py"}
)


class PeerEngine(PeerProcess):
    """A running peer with a model. Close it, or use it as a context."""

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
        self.name = name
        given = {"folder": folder, "threads": threads, "dtype": dtype}
        super().__init__(
            f"--baseline {name}", python or sys.executable, FOLDER / SCRIPTS[name], given
        )

    def prefill_s(self, num_tokens: int) -> float:
        """Returns the seconds of one prompt."""
        return self.ask({"call": "prefill", "num_tokens": num_tokens})

    def decode_s(self, batch: int, context: int, num_steps: int) -> float:
        """Returns the seconds of one greedy step, the mean of `num_steps`."""
        return self.ask(
            {"call": "decode", "batch": batch, "context": context, "num_steps": num_steps}
        )
