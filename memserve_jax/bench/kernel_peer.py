"""PyTorch's attention as a process of its own, timed in turns with our kernels."""

import pathlib

from memserve_jax.bench.kernel_case import KernelCase
from memserve_jax.bench.peer_process import PeerProcess
from memserve_jax.core.errors import ConfigError
from pallas_kernels.device import device

SCRIPT = pathlib.Path(__file__).parent / "peer_engines" / "torch_attention_peer.py"
DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # ours -> torch's


class TorchPeer(PeerProcess):
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
        super().__init__("--torch-python", python, SCRIPT, {"device": place})

    def takes(self, case: KernelCase) -> bool:
        """Whether the case is attention: decode or a prompt's."""
        return "attention" in case.op

    def seconds(self, case: KernelCase, num_calls: int) -> float:
        """Returns the seconds of a call, pages gathered each time, the mean of so many.

        Raises:
          MemServeError: the peer cannot, for want of memory say, or has ended.
        """
        return self.ask(
            {
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
        )
