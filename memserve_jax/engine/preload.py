"""The stage before the queue: requests whose hits are on their way from further off.

A request's hits begin to move when it is queued, not when it is scheduled. Until they have come,
or their time is over, the batcher passes over it: others go ahead, and what has not come by then
is computed.
"""

from typing import Protocol, runtime_checkable

from memserve_jax.core.cost_model import FetchOffer
from memserve_jax.engine.forecast import Forecast
from memserve_jax.engine.sequence import Duty, Sequence
from memserve_jax.mempool.fetch import Fetch
from memserve_jax.mempool.pool import MemPool


@runtime_checkable
class Arriving(Protocol):
    """Blocks on their way to HBM for one request; they end by themselves, in time."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is under way any more."""
        ...

    def cancel(self) -> None:
        """Ends it at once; what has come stays."""
        ...


@runtime_checkable
class Load(Arriving, Protocol):
    """Blocks on their way, counted beforehand."""

    @property
    def num_wanted(self) -> int:
        """Blocks it set out to bring."""
        ...


class Preload:
    """What is on its way for which waiting sequence. The engine's thread owns it.

    First come the instance's own hits that lie further off. Then, if the route names a peer that
    holds more, and the decision is for it, the rest from there: what has not come in time, or
    fails, is computed.

    Loads of sequences that wait take at most half of HBM together, so that what comes early does
    not push out what came before it for another. A sequence beyond that begins when the batcher
    gets to it.
    """

    def __init__(
        self,
        pool: MemPool,
        *,
        caches: bool,
        timeout_s: float,
        forecast: Forecast | None = None,
    ):
        """Makes an empty stage.

        Args:
          pool: Where hits are.
          caches: Whether sequences look for hits at all.
          timeout_s: How long one waits at most, from the beginning of each of its loads.
          forecast: Decides whether a peer's KV is worth fetching (paper eq. 2).
        """
        self._forecast = forecast or Forecast()
        self._fetched: set[Sequence] = set()  # the decision has been made
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
        self._go_on(sequence)
        return sequence not in self._loads or self._loads[sequence].is_done

    def cancel(self, sequence: Sequence) -> None:
        """Ends what is under way for a sequence, if anything is; it may begin again."""
        self._fetched.discard(sequence)
        load = self._loads.pop(sequence, None)
        if load is not None:
            load.cancel()

    def settle(self) -> bool:
        """Returns whether a load has ended since the last call: someone may have become ready."""
        for sequence in list(self._loads):
            self._go_on(sequence)
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
        self._go_on(sequence)

    def _go_on(self, sequence: Sequence) -> None:
        """Turns to the peer once the instance's own hits are here."""
        load, source = self._loads.get(sequence), sequence.request.fetch
        is_first = sequence.cached_tokens is None and sequence.duty is not Duty.DECODE
        if load is None or not load.is_done or source is None or not is_first:
            return
        if sequence in self._fetched:
            return
        self._fetched.add(sequence)
        salt = sequence.request.cache_salt
        offer = self._pool.offer_of(sequence.token_ids, source, salt=salt)
        if offer.num_offered > offer.num_held and self._forecast.fetches(offer):
            fetch = self._pool.fetch(
                sequence.token_ids, source.instance, salt=salt, timeout_s=self._timeout_s
            )
            self._loads[sequence] = _Fetching(fetch, offer, self._forecast)
            self._num_under_way += not fetch.is_done


class _Fetching:
    """A fetch as a load, which is accounted for when it has come."""

    def __init__(self, fetch: Fetch, offer: FetchOffer, forecast: Forecast):
        self._fetch = fetch
        self._forecast: Forecast | None = forecast
        self.num_wanted = offer.num_blocks

    @property
    def is_done(self) -> bool:
        if self._fetch.is_done and self._forecast is not None:
            if self._fetch.num_blocks:
                self._forecast.fetched(self._fetch.num_bytes, self._fetch.seconds)
            self._forecast = None
        return self._fetch.is_done

    def cancel(self) -> None:
        self._fetch.cancel()
