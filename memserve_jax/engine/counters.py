"""Totals and load of one engine, as the scheduler is told."""

import dataclasses
from dataclasses import dataclass

from memserve_jax.mempool.counters import PoolCounters

OF_POOL = {  # field of Counters -> field of PoolCounters it repeats
    "kv_blocks_sent": "blocks_sent",
    "kv_bytes_sent": "bytes_sent",
    "kv_transfer_calls": "transfer_calls",
    "kv_transfer_s": "transfer_s",
    "kv_transfers_done": "transfers_done",
    "kv_transfers_failed": "transfers_failed",
    "kv_transfers_queued": "transfers_queued",
    "kv_reservations_refused": "reservations_refused",
    "kv_blocks_received": "blocks_received",
    "kv_bytes_received": "bytes_received",
    "blocks_swapped_out": "blocks_swapped_out",
    "blocks_swapped_in": "blocks_swapped_in",
    "kv_blocks_fetched": "blocks_fetched",
    "kv_fetches_failed": "fetches_failed",
    "blocks_prefetched": "blocks_prefetched",
    "disk_blocks_written": "disk_blocks_written",
    "disk_blocks_read": "disk_blocks_read",
    "disk_blocks_refused": "disk_blocks_refused",
    "disk_blocks_skipped": "disk_blocks_skipped",
}


@dataclass(slots=True)
class Counters:
    """Totals since the start; the fields of proto `Counters`."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens_computed: int = 0
    output_tokens: int = 0
    kv_blocks_sent: int = 0
    kv_bytes_sent: int = 0
    kv_transfer_calls: int = 0
    kv_blocks_received: int = 0
    kv_send_backs: int = 0
    kv_send_backs_dropped: int = 0
    preemptions: int = 0
    cancelled: int = 0
    blocks_swapped_out: int = 0
    blocks_swapped_in: int = 0
    kv_transfer_s: float = 0.0
    compiled_shapes: int = 0
    kv_transfers_done: int = 0
    kv_transfers_failed: int = 0
    kv_reservations_refused: int = 0
    kv_blocks_fetched: int = 0
    kv_fetches_failed: int = 0
    blocks_prefetched: int = 0
    disk_blocks_written: int = 0
    disk_blocks_read: int = 0
    disk_blocks_refused: int = 0
    kv_bytes_received: int = 0
    disk_blocks_skipped: int = 0
    kv_streams_aborted: int = 0
    transfer_mode_switches: int = 0
    kv_transfers_queued: int = 0
    prefill_predicted_s: float = 0.0
    prefill_actual_s: float = 0.0
    kv_fetches_chosen: int = 0
    kv_fetches_declined: int = 0
    kv_fetch_predicted_s: float = 0.0
    kv_fetch_actual_s: float = 0.0
    kv_fetch_saved_s: float = 0.0

    def with_pool(self, pool: PoolCounters) -> "Counters":
        """Returns these totals with those of the engine's pool."""
        of_pool = {name: getattr(pool, field) for name, field in OF_POOL.items()}
        compiled = self.compiled_shapes + pool.compiled_shapes
        return dataclasses.replace(self, compiled_shapes=compiled, **of_pool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A moment's load."""

    running: int  # requests with a row
    waiting: int  # without one: queued, awaiting KV, handing off
    queued_prefill_tokens: int  # prompt tokens not computed yet
    prefill_tokens_per_s: float  # measured; 0 before the first measurement


class PrefillRate:
    """Prompt tokens computed a second, while prompts are computed: a moving average."""

    _WEIGHT = 0.2  # of the latest step

    def __init__(self):
        self._tokens_per_s = 0.0

    @property
    def tokens_per_s(self) -> float:
        """The rate; 0 before the first step."""
        return self._tokens_per_s

    def add(self, num_tokens: int, seconds: float) -> None:
        """Takes a step that computed `num_tokens` prompt tokens in `seconds` into account."""
        if seconds <= 0:
            return
        latest = num_tokens / seconds
        if not self._tokens_per_s:
            self._tokens_per_s = latest
        self._tokens_per_s += self._WEIGHT * (latest - self._tokens_per_s)
