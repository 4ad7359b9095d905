"""Makes the golden checkpoints and what `transformers` answers on them.

Run from the repository root, with an environment that has the `oracle` extra:

    python tests/oracle/make_goldens.py tests/goldens
    python tests/oracle/make_goldens.py OUT --seed 1000 --scale-up   # other sizes and weights

Seeds are searched until the goldens can fail: from prompt length 16 on every answer has at
least 8 distinct tokens, every choice is clear by at least 0.01, and switching any feature of
the variant off changes the tokens.
"""

import argparse
import json
import pathlib
import shutil
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from memserve_jax.core.byte_tokenizer import BOS, END, EOS, TOKENIZER_SIZE, write_tokenizer
from tests.oracle.variants import VARIANTS, Variant

LENGTHS = (1, 15, 16, 17, 90, 333, 700)
CHECKED_FROM = 16  # shorter prompts may repeat themselves
STEPS = 24
LOGIT_STEPS = (0, 1, 8, 16, 23)  # committed in full
CONTEXT = 1024
MIN_DISTINCT = 8
MIN_GAP = 0.01
MAX_SEEDS = 2000
MAX_BYTES = 300_000


def main() -> None:
    """Makes every variant, or those named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("variants", nargs="*", choices=[*VARIANTS, []])
    parser.add_argument("--seed", type=int, default=0, help="first seed tried")
    parser.add_argument("--scale-up", action="store_true", help="larger sizes, all logits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.variants or VARIANTS:
        variant = VARIANTS[name].scaled_up() if args.scale_up else VARIANTS[name]
        steps = tuple(range(STEPS)) if args.scale_up else LOGIT_STEPS
        make(args.out / name, variant, first_seed=args.seed, logit_steps=steps)


def make(
    directory: pathlib.Path, variant: Variant, *, first_seed: int, logit_steps: tuple[int, ...]
) -> None:
    """Writes one variant's checkpoint, and `golden.npz` beside it."""
    for seed in range(first_seed, first_seed + MAX_SEEDS):
        write_checkpoint(directory, variant, seed)
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
        prompts = make_prompts(seed)
        answers = answer_all(model, prompts)
        if answers is not None and features_bite(model, variant, prompts, answers[0]):
            break
    else:
        raise SystemExit(f"{directory.name}: no seed in {MAX_SEEDS} will do")
    tokens, logits = answers
    np.savez_compressed(
        directory / "golden.npz",
        prompts=np.concatenate(prompts).astype(np.int32),
        prompt_lengths=np.array(LENGTHS, np.int32),
        tokens=tokens.astype(np.int32),
        logit_steps=np.array(logit_steps, np.int32),
        logits=logits[:, list(logit_steps)],
    )
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    print(  # noqa: T201
        f"{directory.name}: seed {seed}, {size} bytes of weights, {gaps(logits).min():.4f} gap"
    )
    assert variant.is_scaled_up or size <= MAX_BYTES


def write_checkpoint(directory: pathlib.Path, variant: Variant, seed: int) -> None:
    """Writes a random checkpoint with the variant's config as it is spelled."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    config = {
        **variant.config,
        "vocab_size": TOKENIZER_SIZE,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(str(directory), max_context_tokens=CONTEXT)
    model = AutoModelForCausalLM.from_config(variant.parsed_config(directory))
    scale_weights(model)
    weights = {
        name: weight.to(variant.dtype).contiguous()
        for name, weight in model.state_dict().items()
        if not (name == "lm_head.weight" and variant.ties_embeddings)
    }
    save_weights(directory, weights, variant.num_files)


def scale_weights(model: torch.nn.Module) -> None:
    """Draws weights that make answers varied and choices clear, and never end an answer."""
    for name, weight in model.named_parameters():
        columns = weight.shape[-1]
        if name.endswith("norm.weight"):
            weight.data = 1 + 0.3 * torch.randn_like(weight)
        elif name.endswith("bias"):
            weight.data = 0.5 * torch.randn_like(weight)
        elif "embed_tokens" in name:
            is_head = model.config.tie_word_embeddings  # then a token must not predict itself
            weight.data = (0.3 if is_head else 1.0) * torch.randn_like(weight)
        elif "lm_head" in name:
            weight.data = 3 * torch.randn_like(weight) / columns**0.5
        elif "q_proj" in name or "k_proj" in name:
            weight.data = 1.5 * torch.randn_like(weight) / columns**0.5
        else:
            weight.data = 1.3 * torch.randn_like(weight) / columns**0.5
    model.get_output_embeddings().weight.data[[EOS, END]] = 0.0


def save_weights(directory: pathlib.Path, weights: dict[str, torch.Tensor], parts: int) -> None:
    """Writes `model.safetensors`, or several files with an index."""
    if parts == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return
    file_of = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        held = dict(sorted(weights.items())[part::parts])
        save_file(held, directory / file, metadata={"format": "pt"})
        file_of |= dict.fromkeys(held, file)
    total = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_prompts(seed: int) -> list[np.ndarray]:
    """Returns a prompt of each length, over the whole vocabulary but the ends."""
    random = np.random.default_rng(seed)
    allowed = np.array([i for i in range(TOKENIZER_SIZE) if i not in (EOS, END)])
    return [random.choice(allowed, length) for length in LENGTHS]


def answer_all(
    model: torch.nn.Module, prompts: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns greedy tokens `[prompt, step]` and logits, or None if they would not do."""
    answers = []
    for prompt in prompts:
        tokens, logits = greedy(model, prompt)
        may_repeat = len(prompt) < CHECKED_FROM
        if gaps(logits).min() < MIN_GAP or (len(set(tokens)) < MIN_DISTINCT and not may_repeat):
            return None
        answers.append((tokens, logits))
    return np.array([t for t, _ in answers]), np.stack([x for _, x in answers])


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Returns `STEPS` greedy tokens and their logits, each from a full pass without a cache."""
    ids = torch.tensor(prompt)[None, :]
    tokens, logits = [], []
    for _ in range(STEPS):
        last = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        logits.append(last.numpy())
        tokens.append(int(last.argmax()))
        ids = torch.cat([ids, last.argmax().reshape(1, 1)], dim=1)
    return tokens, np.stack(logits)


def gaps(logits: np.ndarray) -> np.ndarray:
    """Returns by how much the best logit beats the second, for each vector of them."""
    top = np.sort(logits, axis=-1)
    return top[..., -1] - top[..., -2]


def features_bite(
    model: torch.nn.Module, variant: Variant, prompts: list[np.ndarray], tokens: np.ndarray
) -> bool:
    """Whether switching each feature off changes the answers it should change."""
    for feature in variant.features:
        without = feature.without(model)
        for length, prompt, expected in zip(LENGTHS, prompts, tokens, strict=True):
            if length >= feature.bites_from and greedy(without, prompt)[0] == expected.tolist():
                return False
    return True


if __name__ == "__main__":
    main()
