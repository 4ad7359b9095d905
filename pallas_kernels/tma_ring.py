"""Copies from global memory to global memory by a Hopper's copy engine (TMA), several under way.

Every piece passes through one of a ring of buffers in shared memory; a program never touches
the numbers. The heart of the Mosaic GPU kernels that move pages.
"""

import re
from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.device import device

DEPTH = 4  # buffers
PIECE_BYTES = 32 * 1024  # at most, if heads can be taken one by one: the ring fits a core
SHARED_BYTES = 227 * 1024  # of a Hopper core
BOX = 256  # elements of an axis that one TMA copy takes
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8)
_HAS_TMA = re.compile(r"\b(GH|GB|H|B)(100|200|300|800|20)\b")  # kinds of device, Hopper or later

Ref = Any  # of Pallas; it has no public type


def refusal(pages: Array) -> str | None:
    """Returns why TMA cannot move such pages on this device; None if it can."""
    current = device()
    if current.platform == "gpu" and not _HAS_TMA.search(current.kind):
        return f"device {current.kind}; Hopper and later have TMA"
    _, _, page_size, head_dim = pages.shape
    if pages.dtype not in DTYPES:
        return f"pages of {pages.dtype}; float32, bfloat16, float16 and int8 are taken"
    if head_dim * pages.dtype.itemsize % 16 != 0:
        return f"rows of {head_dim * pages.dtype.itemsize} bytes; multiples of 16 are taken"
    if max(head_dim, page_size) > BOX:
        return f"pages of {page_size} tokens of head dim {head_dim}; at most {BOX} of each"
    if DEPTH * page_size * head_dim * pages.dtype.itemsize > SHARED_BYTES:
        return f"pages of {page_size} tokens of head dim {head_dim}: {DEPTH} do not fit"
    return None


def piece_heads(pages: Array, replication: int) -> int:
    """Returns how many heads of a page one piece takes: a divisor of the heads there are."""
    _, stored_heads, page_size, head_dim = pages.shape
    if replication > 1:
        return 1
    head_bytes = page_size * head_dim * pages.dtype.itemsize
    most = max(1, min(PIECE_BYTES // head_bytes, BOX))
    return max(heads for heads in range(1, most + 1) if stored_heads % heads == 0)


def scratch_types(pages: Array, heads: int) -> list[Any]:
    """Returns the scratch of `copy`: its last two arguments."""
    _, _, page_size, head_dim = pages.shape
    ring = plgpu.SMEM((DEPTH, heads, page_size, head_dim), pages.dtype)
    return [ring, plgpu.Barrier(num_barriers=DEPTH)]


def copy(pieces: list[tuple[Ref, list[Ref]]], ring: Ref, arrivals: Ref) -> None:
    """Copies each piece to its targets, all `[heads, S, H]`; returns when all have arrived."""

    def load(step: int) -> None:
        slot = step % DEPTH
        plgpu.copy_gmem_to_smem(pieces[step][0], ring.at[slot], arrivals.at[slot])

    for step in range(min(DEPTH - 1, len(pieces))):
        load(step)
    for step, (_, targets) in enumerate(pieces):
        slot = step % DEPTH
        plgpu.barrier_wait(arrivals.at[slot])
        for target in targets:
            plgpu.copy_smem_to_gmem(ring.at[slot], target)
        # The buffer loaded next is the one that the step before stored from.
        plgpu.wait_smem_to_gmem(len(targets), wait_read_only=True)
        if step + DEPTH - 1 < len(pieces):
            load(step + DEPTH - 1)
    plgpu.wait_smem_to_gmem(0)


def interpreted(interpret: Any) -> dict[str, Any]:
    """Returns the arguments for `plgpu.kernel`, which takes no False."""
    return {"interpret": interpret} if interpret else {}
