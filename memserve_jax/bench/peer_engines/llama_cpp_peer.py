"""Times llama.cpp: started by `bench model`, talks JSON lines on stdin, stdout.

Runs in any Python with llama-cpp-python, gguf, safetensors and ml_dtypes; imports nothing of
ours. The Llama checkpoint is rewritten as GGUF in float32 first, beside it.
"""

import json
import os
import pathlib
import time

import gguf
import llama_cpp
import ml_dtypes  # noqa: F401  # lets numpy read bfloat16 tensors
import numpy as np
from peer_loop import serve
from safetensors.numpy import load_file

LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
MAX_ROWS = 8
CONTEXT_TOKENS = 2048  # a row
IGNORE_LOG = llama_cpp.llama_log_callback(lambda level, text, data: None)
OTHER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: pathlib.Path) -> pathlib.Path:
    """Returns the GGUF form of a Llama checkpoint, made if it is not there."""
    target = folder / "model-float32.gguf"
    if target.exists():
        return target
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    scratch = target.with_suffix(f".{os.getpid()}")
    writer = gguf.GGUFWriter(scratch, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, values in load_file(folder / "model.safetensors").items():
        tensor = values.astype(np.float32)
        if "q_proj" in name or "k_proj" in name:  # GGUF's rope turns neighbours, not halves
            rows = heads if "q_proj" in name else kv_heads
            halves = tensor.reshape(rows, 2, head_dim // 2, -1)
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(gguf_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    scratch.rename(target)
    return target


def gguf_name(name: str) -> str:
    """Returns what GGUF calls a tensor of a Hugging Face Llama."""
    stem = name.removesuffix(".weight")
    if stem in OTHER_NAMES:
        return f"{OTHER_NAMES[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[part]}.weight"


class Engine:
    """One model on the CPU, driven through llama.cpp's own batches."""

    def __init__(self, folder: str, threads: int, dtype: str):
        if dtype != "float32":
            raise SystemExit(f"dtype: got {dtype}, allowed: float32")
        llama_cpp.llama_log_set(IGNORE_LOG, None)
        llama_cpp.llama_backend_init()
        file = str(write_gguf(pathlib.Path(folder))).encode()
        self.model = llama_cpp.llama_model_load_from_file(
            file, llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = MAX_ROWS * CONTEXT_TOKENS
        params.n_seq_max = MAX_ROWS
        params.n_batch = CONTEXT_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.batch = llama_cpp.llama_batch_init(CONTEXT_TOKENS, 0, 1)
        self.version = f"llama-cpp-python {llama_cpp.__version__}"

    def prefill(self, num_tokens: int) -> float:
        """Returns the seconds of one prompt of `num_tokens`, down to the last token's logits."""
        self._clear()
        tokens = [(5 + i % 1000, i, 0, i == num_tokens - 1) for i in range(num_tokens)]
        return self._run(tokens)

    def decode(self, batch: int, context: int, num_steps: int) -> float:
        """Returns the seconds of a greedy step of `batch` rows, the mean of `num_steps`."""
        self._clear()
        for row in range(batch):
            self._run([(5 + i % 1000, i, row, False) for i in range(context - 1)])
        seconds = 0.0
        for step in range(num_steps):
            seconds += self._run([(7, context - 1 + step, row, True) for row in range(batch)])
        return seconds / num_steps

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _run(self, tokens: list[tuple[int, int, int, bool]]) -> float:
        """Runs tokens of (id, position, row, wants logits) and waits for the logits."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, row, wants) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, int(wants)
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        start_s = time.perf_counter()
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(self.context)
        return time.perf_counter() - start_s


serve(Engine)
