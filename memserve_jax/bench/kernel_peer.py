"""PyTorch's attention as a process of its own, timed in turns with our kernels."""

import contextlib
import json
import pathlib
import subprocess
import tempfile
from types import TracebackType

from memserve_jax.bench.kernel_case import KernelCase
from memserve_jax.core.errors import ConfigError, MemServeError
from pallas_kernels.device import device

SCRIPT = pathlib.Path(__file__).parent / "peer_engines" / "torch_attention_peer.py"
DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # ours -> torch's


class TorchPeer:
    """A running peer. Close it, or use it as a context."""

    name = "torch"

    def __init__(self, python: str):
        """Starts `python`, an interpreter with torch, on the kind of device that is ours.

        Raises:
          ConfigError: it cannot run, or has no torch for this device.
        """
        place = DEVICES.get(device().platform)
        if place is None:
            raise ConfigError(f"--torch-python: not on {device().platform}, allowed: cpu, gpu")
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  # a pipe could fill up
        try:
            self._process = subprocess.Popen(
                [python, str(SCRIPT), json.dumps({"device": place})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
            )
        except OSError as error:
            self._stderr.close()
            raise ConfigError(f"--torch-python: cannot run {python}: {error.strerror}") from None
        try:
            self.version = str(self._read()["version"])
        except MemServeError as error:
            self.close()
            raise ConfigError(f"--torch-python: {error}") from None

    def takes(self, case: KernelCase) -> bool:
        """Whether the case is attention: decode or a prompt's."""
        return "attention" in case.op

    def seconds(self, case: KernelCase, num_calls: int) -> float:
        """Returns the seconds of a call, pages gathered each time, the mean of so many.

        Raises:
          MemServeError: the peer cannot, for want of memory say, or has ended.
        """
        assert self._process.stdin is not None
        call = {
            "num_calls": num_calls,
            "is_prefill": case.op == "ragged_paged_attention",
            "batch": case.batch,
            "context": case.context,
            "page_size": case.page_size,
            "num_heads": case.shape.num_heads,
            "kv_heads": case.shape.kv_heads,
            "head_dim": case.shape.head_dim,
            "dtype": case.dtype,
        }
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

    def __enter__(self) -> "TorchPeer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()

    def _read(self) -> dict[str, str | float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self._process.wait()
        self._stderr.seek(0)
        last_words = self._stderr.read().strip().splitlines()
        raise MemServeError(f"it ended: {last_words[-1] if last_words else 'without a word'}")
