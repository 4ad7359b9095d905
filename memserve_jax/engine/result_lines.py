"""What a step gives back, as one int32 array: reading a step is reading one array.

A line a row: its token, its logprob, the alternatives and their logprobs; floats as their bits.
"""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32

from memserve_jax.engine.sampling import Sampled


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step sampled, on the host; a line per row of the step."""

    token_ids: list[int]
    logprobs: np.ndarray  # f32 [B]; zeros unless a row of the step asked
    top_token_ids: np.ndarray  # i32 [B, A]
    top_logprobs: np.ndarray  # f32 [B, A]


def pack(sampled: Sampled) -> Int32[Array, "B W"]:
    """Returns the lines, on the device."""
    bits = partial(lax.bitcast_convert_type, new_dtype=jnp.int32)
    return jnp.concatenate(
        [
            sampled.token_ids[:, None],
            bits(sampled.logprobs)[:, None],
            sampled.top_token_ids,
            bits(sampled.top_logprobs),
        ],
        axis=1,
    )


def unpack(lines: Int32[np.ndarray, "B W"]) -> StepResult:
    """Returns what the lines say, on the host."""
    floats = lines.view(np.float32)
    num_top = (lines.shape[1] - 2) // 2
    return StepResult(
        token_ids=lines[:, 0].tolist(),
        logprobs=floats[:, 1],
        top_token_ids=lines[:, 2 : 2 + num_top],
        top_logprobs=floats[:, 2 + num_top :],
    )
