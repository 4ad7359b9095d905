"""`memserve bench kernels --tune`: times tiles on this device and keeps the fastest of each shape.

Triton's kernels have tiles; the other ones' are constants beside them.
"""

import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax

from memserve_jax.bench.kernel_arrays import KernelArrays, bind, make_arrays, renew
from memserve_jax.bench.kernel_case import KernelCase
from memserve_jax.bench.kernels import mean_seconds
from memserve_jax.core.clock import SystemClock
from memserve_jax.core.errors import ConfigError, MemServeError
from pallas_kernels.device import device
from pallas_kernels.kv_append import pallas_gpu as append
from pallas_kernels.kv_gather import pallas_gpu as gather
from pallas_kernels.kv_scatter import pallas_gpu as scatter
from pallas_kernels.paged_attention import pallas_gpu as decode
from pallas_kernels.ragged_paged_attention import pallas_gpu as prefill
from pallas_kernels.tiles import Shape, Tile, attention_shape, copy_shape, tile_candidates
from pallas_kernels.tuned_tiles import Measured, measured_now, write

Progress = Callable[[int, int, str], None]  # done, total, what
TimeTile = Callable[[KernelCase, KernelArrays, Tile], float]  # µs of a call

NUM_ROUNDS = 5  # medians over them
CALLS = 10  # of a round

KERNELS: Mapping[str, Callable[..., Any]] = {
    "paged_attention": decode.paged_attention,
    "ragged_paged_attention": prefill.ragged_paged_attention,
    "kv_append": append.kv_append,
    "kv_gather": gather.kv_gather,
    "kv_scatter": scatter.kv_scatter,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The fastest tile of a case, and how many others were timed or refused."""

    case: KernelCase
    best: Measured
    first_us: float  # of the tile that is used where nothing was measured
    num_timed: int
    num_refused: int  # by the compiler


def check_platform() -> None:
    """Refuses to tune where no kernel has tiles.

    Raises:
      ConfigError: the process's device is no GPU.
    """
    if device().platform != "gpu":
        raise ConfigError(f"--tune: no kernel has tiles on {device().platform}, allowed: a GPU")


def time_tile(case: KernelCase, arrays: KernelArrays, tile: Tile) -> float:
    """Returns the µs of a call of the Triton kernel with `tile`: the median of some rounds."""
    call, clock = bind(case, arrays, partial(KERNELS[case.op], tile=tile)), SystemClock()
    jax.block_until_ready(call())
    rounds = [mean_seconds(call, CALLS, clock) for _ in range(NUM_ROUNDS)]
    return statistics.median(rounds) * 1e6


def tune(
    cases: Sequence[KernelCase],
    folder: pathlib.Path,
    *,
    time_of: TimeTile = time_tile,
    progress: Progress | None = None,
) -> list[Tuned]:
    """Times every candidate of every case, and writes the fastest after each case.

    Args:
      cases: That fit on the device; of those of one shape key the first counts.
      folder: Where the device's file lies, or will.
      time_of: Times one tile; raises where the compiler refuses it.
      progress: Told after each case.

    Raises:
      MemServeError: no tile of a case runs; what was measured before is written.
    """
    found: list[Tuned] = []
    seen: set[tuple[str, str]] = set()
    for done, case in enumerate(cases):
        arrays = make_arrays(case)
        shape = shape_of(case, arrays)
        if (case.op, shape.key) not in seen:
            seen.add((case.op, shape.key))
            found.append(_tune(case, arrays, shape, time_of))
            write(folder, device().kind, [found[-1].best])
        if progress:
            progress(done + 1, len(cases), case.name)
    return found


def shape_of(case: KernelCase, arrays: KernelArrays) -> Shape:
    """Returns what tiles depend on, as the kernel itself works it out."""
    pages = arrays.pages.k[0]
    if case.op in ("paged_attention", "ragged_paged_attention"):
        return attention_shape(arrays.q, pages, arrays.tables, None)
    return copy_shape(pages, case.num_tokens if case.op == "kv_append" else arrays.tables.size)


def _tune(case: KernelCase, arrays: KernelArrays, shape: Shape, time_of: TimeTile) -> Tuned:
    times: dict[Tile, float] = {}
    last_words, candidates = "", tile_candidates(case.op, shape)
    for tile in candidates:
        try:
            times[tile] = time_of(case, arrays, tile)
        except Exception as error:  # compilers refuse in many ways: they are counted
            last_words = f"{type(error).__name__}: {error}"
            renew(case, arrays)
    if not times:
        raise MemServeError(f"--tune: {case.name}: no tile runs: {last_words}")
    best = min(times, key=lambda tile: times[tile])
    return Tuned(
        case=case,
        best=measured_now(case.op, shape.key, asdict(best), times[best]),
        first_us=times.get(candidates[0], float("nan")),
        num_timed=len(times),
        num_refused=len(candidates) - len(times),
    )
