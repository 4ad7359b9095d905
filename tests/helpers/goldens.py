"""The committed golden checkpoints and what `transformers` answered on them."""

import pathlib
from dataclasses import dataclass

import numpy as np

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
NAMES = ("llama2", "llama3", "llama_linear", "llama_yarn", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One checkpoint's prompts and answers, all greedy, in float32."""

    path: str  # a model directory
    prompts: list[list[int]]  # of 1, 15, 16, 17, 90, 333 and 700 tokens
    tokens: list[list[int]]  # 24 for each prompt
    logit_steps: list[int]  # which steps `logits` holds
    logits: np.ndarray  # [prompt, logit_steps, V]


def load_golden(name: str, *, folder: pathlib.Path = GOLDENS) -> Golden:
    """Returns the golden called `name`."""
    with np.load(folder / name / "golden.npz") as arrays:
        ends = np.cumsum(arrays["prompt_lengths"])[:-1]
        return Golden(
            path=str(folder / name),
            prompts=[part.tolist() for part in np.split(arrays["prompts"], ends)],
            tokens=arrays["tokens"].tolist(),
            logit_steps=arrays["logit_steps"].tolist(),
            logits=arrays["logits"],
        )
