"""Compiles all that instances will run, side by side, before they serve."""

import asyncio
from collections.abc import Callable, Sequence

from memserve_jax.core.types import Role, Tier
from memserve_jax.launch.build import Progress
from memserve_jax.serving.engine_parts import EngineParts


async def warm_up(all_parts: Sequence[EngineParts], progress: Progress | None) -> None:
    """Returns when the steps of each engine and the copies of each pool are compiled.

    Args:
      all_parts: Of instances that do not serve yet.
      progress: Told of every shape of every instance, with the sums over all; from any thread.
    """
    told = _Sums(progress)
    await asyncio.gather(
        *(asyncio.to_thread(_warm_up_one, parts, told.of(parts)) for parts in all_parts)
    )


def moves_kv(parts: EngineParts) -> bool:
    """Whether blocks ever leave the pool's HBM: for a peer, or for another tier."""
    if parts.identity.role is not Role.COLOCATED:
        return True
    return any(tier.tier is Tier.HOST and tier.num_blocks for tier in parts.pool.status.tiers)


def _warm_up_one(parts: EngineParts, progress: Callable[[int, int, str], None]) -> None:
    parts.engine.warm_up(progress)
    if moves_kv(parts):
        most = -(-parts.engine.max_context_tokens // parts.identity.block_size_tokens)
        copies = parts.engine.copies
        parts.pool.warm_up(
            min(most, parts.pool.num_hbm_blocks), spans=copies.spans, cells=copies.has_cells
        )


class _Sums:
    """Adds up what several instances report."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self._counts: dict[str, tuple[int, int]] = {}

    def of(self, parts: EngineParts) -> Callable[[int, int, str], None]:
        """Returns what one instance is to tell."""
        name = str(parts.identity.instance)

        def tell(done: int, total: int, what: str) -> None:
            self._counts[name] = (done, total)
            if self._progress is not None:
                counts = list(self._counts.values())
                self._progress(
                    sum(done for done, _ in counts), sum(total for _, total in counts), what
                )

        return tell
