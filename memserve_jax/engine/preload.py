"""The stage before the queue: requests whose hits are on their way from further off.

A request's hits begin to move when it is queued, not when it is scheduled. Until they have come,
or their time is over, the batcher passes over it: others go ahead, and what has not come by then
is computed.
"""

from typing import Protocol, runtime_checkable

from memserve_jax.engine.sequence import Sequence
from memserve_jax.mempool.pool import MemPool


@runtime_checkable
class Load(Protocol):
    """Blocks that are being brought to HBM for one request; they end by themselves, in time."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is under way any more."""
        ...

    @property
    def num_wanted(self) -> int:
        """Blocks it set out to bring."""
        ...

    def cancel(self) -> None:
        """Ends it at once; what has come stays."""
        ...


class Preload:
    """What is on its way for which waiting sequence. The engine's thread owns it.

    Loads of sequences that wait take at most half of HBM together, so that what comes early does
    not push out what came before it for another. A sequence beyond that begins when the batcher
    gets to it.
    """

    def __init__(self, pool: MemPool, *, caches: bool, timeout_s: float):
        """Makes an empty stage.

        Args:
          pool: Where hits are.
          caches: Whether sequences look for hits at all.
          timeout_s: How long one waits at most, from the beginning of its load.
        """
        self._pool = pool
        self._caches = caches
        self._timeout_s = timeout_s
        self._loads: dict[Sequence, Load] = {}
        self._num_under_way = 0  # when last looked

    def begin(self, sequence: Sequence) -> None:
        """Begins to bring a queued sequence's hits, where there is room for them."""
        num_blocks = sum(load.num_wanted for each, load in self._loads.items() if not each.lease)
        if num_blocks <= self._pool.num_hbm_blocks // 2:
            self._start(sequence)

    def ready(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence has nothing to wait for here; begins what was not begun."""
        if sequence not in self._loads:
            self._start(sequence)
        return sequence not in self._loads or self._loads[sequence].is_done

    def cancel(self, sequence: Sequence) -> None:
        """Ends what is under way for a sequence, if anything is; it may begin again."""
        load = self._loads.pop(sequence, None)
        if load is not None:
            load.cancel()

    def settle(self) -> bool:
        """Returns whether a load has ended since the last call: someone may have become ready."""
        num_before = self._num_under_way
        self._num_under_way = sum(not load.is_done for load in self._loads.values())
        return self._num_under_way < num_before

    def _start(self, sequence: Sequence) -> None:
        if not self._caches:
            return
        load = self._pool.prefetch(
            sequence.token_ids, salt=sequence.request.cache_salt, timeout_s=self._timeout_s
        )
        self._loads[sequence] = load
        self._num_under_way += not load.is_done
