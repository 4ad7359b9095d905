"""Times PyTorch's attention on paged KV: started by `bench kernels`, talks JSON lines.

Runs in any Python with torch; imports nothing of ours. The pages are gathered in each call.
"""

import json
import sys
import time

import torch


class Attention:
    """scaled_dot_product_attention on the pages of the case asked for last."""

    def __init__(self, device: str):
        if device == "cuda" and not torch.cuda.is_available():
            sys.exit("torch has no CUDA device here")
        self.device = device
        self.version = f"torch {torch.__version__}"
        self.case: dict = {}

    def make(self, case: dict) -> None:
        """Makes the tensors of a case, if they are not those of the last one."""
        if case == self.case:
            return
        self.case, self.q, self.k, self.v, self.tables = {}, None, None, None, None
        where = {"device": self.device, "dtype": getattr(torch, case["dtype"])}
        width = -(-case["context"] // case["page_size"])
        num_pages = case["batch"] * width
        size = (num_pages, case["kv_heads"], case["page_size"], case["head_dim"])
        tokens = case["context"] if case["is_prefill"] else 1
        self.q = torch.randn(case["batch"], case["num_heads"], tokens, case["head_dim"], **where)
        self.k, self.v = torch.randn(size, **where), torch.randn(size, **where)
        order = torch.randperm(num_pages, device=self.device)
        self.tables = order.reshape(case["batch"], width)
        self.case = case

    def attend(self) -> torch.Tensor:
        """Returns the attention of one call."""
        case = self.case
        shape = (case["batch"], case["kv_heads"], -1, case["head_dim"])
        k, v = (
            pages[self.tables].transpose(1, 2).reshape(shape)[:, :, : case["context"]]
            for pages in (self.k, self.v)
        )
        return torch.nn.functional.scaled_dot_product_attention(
            self.q, k, v, is_causal=case["is_prefill"], enable_gqa=True
        )

    @torch.inference_mode()
    def seconds(self, num_calls: int, **case: object) -> float:
        """Returns the seconds of a call, the mean of so many."""
        self.make(case)
        self.wait()
        start_s = time.perf_counter()
        for _ in range(num_calls):
            self.attend()
        self.wait()
        return (time.perf_counter() - start_s) / num_calls

    def wait(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def say(**answer: object) -> None:
    """Writes one line of JSON."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answers requests until stdin ends."""
    attention = Attention(**json.loads(sys.argv[1]))
    say(version=attention.version)
    for line in sys.stdin:
        try:
            say(seconds=attention.seconds(**json.loads(line)))
        except RuntimeError as error:  # out of memory, say
            say(error=str(error).splitlines()[0])


main()
