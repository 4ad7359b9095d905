"""Times Hugging Face transformers: started by `bench model`, talks JSON lines on stdin, stdout.

Runs in any Python with torch and transformers; imports nothing of ours.
"""

import os
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
import transformers
from peer_loop import serve


class Engine:
    """One causal language model on the CPU."""

    def __init__(self, folder: str, threads: int, dtype: str):
        torch.set_num_threads(threads)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    @torch.inference_mode()
    def prefill(self, num_tokens: int) -> float:
        """Returns the seconds of one prompt of `num_tokens`, down to the last token's logits."""
        prompt = torch.arange(num_tokens)[None] % 1000 + 5
        start_s = time.perf_counter()
        self.model(prompt, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start_s

    @torch.inference_mode()
    def decode(self, batch: int, context: int, num_steps: int) -> float:
        """Returns the seconds of a greedy step of `batch` rows, the mean of `num_steps`."""
        prompt = torch.arange(context - 1)[None].repeat(batch, 1) % 1000 + 5
        out = self.model(prompt, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        start_s = time.perf_counter()
        for _ in range(num_steps):
            out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return (time.perf_counter() - start_s) / num_steps


serve(Engine)
