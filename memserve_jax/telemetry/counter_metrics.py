"""The totals that an instance reports in `Counters` (proto), each as a metric.

A new field of `Counters` needs an entry here, and no more: it is read from the status message.
"""

from collections.abc import Mapping
from types import MappingProxyType

from memserve_jax.telemetry.metric import WHOSE, Kind, Metric


def _total(name: str, meaning: str, when_bad: str, vllm: str = "") -> Metric:
    return Metric(
        name=f"memserve_{name}_total",
        kind=Kind.COUNTER,
        labels=WHOSE,
        meaning=meaning,
        when_bad=when_bad,
        vllm=vllm,
    )


COUNTERS: Mapping[str, Metric] = MappingProxyType(
    {
        "requests": _total(
            "requests",
            "Requests taken; one in each role where prefill and decode are apart.",
            "The load.",
        ),
        "prompt_tokens": _total(
            "prefix_cache_queries",
            "Prompt tokens looked up, where prompts are computed: of all requests, also with "
            "caching off.",
            "The load.",
            vllm="vllm:prefix_cache_queries",
        ),
        "cached_tokens": _total(
            "prefix_cache_hits",
            "Of those, tokens that were not computed: held in a tier, or fetched from a peer.",
            "A falling share: other prompts, evictions, or routing that ignores caches.",
            vllm="vllm:prefix_cache_hits",
        ),
        "prefill_tokens_computed": _total(
            "prompt_tokens_computed",
            "Prompt tokens computed; those computed again after a preemption count again.",
            "Far above queries less hits: preemptions.",
        ),
        "output_tokens": _total(
            "generation_tokens",
            "Tokens sampled, first tokens at the prefill instance.",
            "The throughput.",
            vllm="vllm:generation_tokens",
        ),
        "kv_blocks_sent": _total(
            "kv_blocks_sent", "Blocks sent to peers.", "0 under load: no KV moves."
        ),
        "kv_bytes_sent": _total(
            "kv_bytes_sent",
            "Bytes of those blocks.",
            "0 under load: no KV moves; see the failed transfers.",
        ),
        "kv_transfer_calls": _total(
            "kv_transfer_calls",
            "Transport calls that transfers made.",
            "Many a transfer: mempool.transfer_mode by_request_aggregated.",
        ),
        "kv_transfer_s": _total(
            "kv_transfer_seconds",
            "From handing blocks to the transport to their arrival, summed over calls.",
            "Bytes over seconds far below the network: `memserve bench transfer`.",
        ),
        "kv_transfers_done": _total(
            "kv_transfers_done", "Transfers that arrived.", "Falls behind the requests: see failed."
        ),
        "kv_transfers_failed": _total(
            "kv_transfers_failed",
            "Transfers that did not: a peer refused, vanished or took too long.",
            "The log names the peer and the reason.",
            vllm="vllm:nixl_num_failed_transfers",
        ),
        "kv_transfers_queued": _total(
            "kv_transfers_queued",
            "Transfers that waited for their turn.",
            "Steadily: mempool.max_transfers, or a slow peer.",
        ),
        "kv_reservations_refused": _total(
            "kv_reservations_refused",
            "Reservations that this instance refused its peers.",
            "It is full: more memory here, or more instances of its role.",
        ),
        "kv_blocks_received": _total(
            "kv_blocks_received", "Blocks that peers sent.", "0 on a decode instance under load."
        ),
        "kv_bytes_received": _total(
            "kv_bytes_received", "Bytes of those blocks.", "0 on a decode instance under load."
        ),
        "kv_send_backs": _total(
            "kv_send_backs",
            "Answers whose KV went back to the prefill instance (pd_caching_3).",
            "0 with multi-turn traffic: see the dropped ones.",
        ),
        "kv_send_backs_dropped": _total(
            "kv_send_backs_dropped",
            "Send-backs given up under pressure.",
            "The next turn computes more: more HBM on the decode side.",
        ),
        "kv_streams_aborted": _total(
            "kv_streams_aborted",
            "By-layer sends given up before their first token.",
            "Often: mempool.transfer_mode by_request_aggregated.",
        ),
        "transfer_mode_switches": _total(
            "transfer_mode_switches",
            "Switches of the automatic transfer mode.",
            "Many a minute: move auto_low_tokens and auto_high_tokens apart.",
        ),
        "kv_blocks_fetched": _total(
            "kv_blocks_fetched",
            "Blocks that a peer sent because this instance asked.",
            "0 with mempool.fetch on and skewed prefixes: see the failed fetches.",
            vllm="vllm:external_prefix_cache_hits",
        ),
        "kv_fetches_failed": _total(
            "kv_fetches_failed",
            "Fetches that failed; the tokens were computed instead.",
            "The log names the peer; mempool.transfer_timeout_s.",
        ),
        "preemptions": _total(
            "num_preemptions",
            "Requests that lost their row and memory to others.",
            "Any steady rate: fewer rows (engine.max_running), or more HBM.",
            vllm="vllm:num_preemptions",
        ),
        "cancelled": _total(
            "requests_cancelled",
            "Requests that ended because a client hung up or ran out of time.",
            "Clients' deadlines are shorter than the queue.",
        ),
        "blocks_swapped_out": _total(
            "kv_blocks_swapped_out",
            "Blocks that went from HBM to HOST or DISK, evictions included.",
            "Normal for a warm cache.",
        ),
        "blocks_swapped_in": _total(
            "kv_blocks_swapped_in",
            "Blocks that came back to HBM.",
            "Far below those swapped out: the lower tiers are never hit.",
        ),
        "blocks_prefetched": _total(
            "kv_blocks_prefetched",
            "Blocks that came nearer while their request was queued.",
            "Below those swapped in: queues are short, or the disk is slow.",
        ),
        "disk_blocks_written": _total(
            "disk_blocks_written", "Blocks written to DISK.", "Wear: a larger HOST tier."
        ),
        "disk_blocks_read": _total(
            "disk_blocks_read", "Blocks read from DISK.", "0: the DISK tier is of no use."
        ),
        "disk_blocks_refused": _total(
            "disk_blocks_refused",
            "Files that were corrupt or foreign, each taken as a miss.",
            "Any: check the disk.",
        ),
        "disk_blocks_skipped": _total(
            "disk_blocks_skipped",
            "Blocks not written: the disk was behind, or takes no more.",
            "A faster disk, or room on it.",
        ),
        "compiled_shapes": _total(
            "compiled_shapes",
            "Shapes compiled: steps, gathers, scatters.",
            "Grows while serving: engine.warm_up is off, or a bug.",
        ),
        "prefill_predicted_s": _total(
            "prefill_predicted_seconds",
            "What the cost model said that steps with prompts in them would take, summed.",
            "Far from prefill_actual_seconds: `memserve bench fit`, and name its file.",
        ),
        "prefill_actual_s": _total(
            "prefill_actual_seconds",
            "What those steps took.",
            "Over predicted by the same factor everywhere: the machine is shared or throttled.",
        ),
        "kv_fetches_chosen": _total(
            "kv_fetches_chosen",
            "Prompts for which KV was fetched from a peer: equation 2 said so, or the config.",
            "0 with mempool.fetch on and skewed prefixes: see the declined ones.",
        ),
        "kv_fetches_declined": _total(
            "kv_fetches_declined",
            "Prompts that a peer held more of, and computing was predicted to be quicker.",
            "All of them: the fitted fetch is slow; compare its seconds below.",
        ),
        "kv_fetch_predicted_s": _total(
            "kv_fetch_predicted_seconds",
            "What the cost model said that fetches that came would take, summed.",
            "Far from kv_fetch_actual_seconds: fit again, over the transport that is used.",
        ),
        "kv_fetch_actual_s": _total(
            "kv_fetch_actual_seconds",
            "What those fetches took, from the call to the visible blocks.",
            "Above kv_fetch_saved_seconds: fetching costs more than it spares.",
        ),
        "kv_fetch_saved_s": _total(
            "kv_fetch_saved_seconds",
            "Seconds of prefill that the fetches chosen spared, as predicted.",
            "Below what they took: fit again, or mempool.fetch: never.",
        ),
    }
)
