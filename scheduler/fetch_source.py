"""Which peer could spare a prefill instance some of the computing (paper section 6, eq. 2).

The scheduler names the peer; whether fetching pays is decided where the KV would go to, with
what that instance really holds.
"""

from memserve_jax.core.types import FetchSource, InstanceId, Request, Route
from scheduler.view import ClusterView


def fetch_source(
    request: Request, route: Route, view: ClusterView, block_size_tokens: int
) -> FetchSource | None:
    """Returns the live instance that holds most of the prompt, if that is more than the route's.

    Of several the least busy one. At most what a prefill can use counts: whole blocks of all
    tokens but the last.
    """
    usable = (len(request.prompt_token_ids) - 1) // block_size_tokens * block_size_tokens
    best: tuple[int, int, InstanceId] | None = None
    for load in view.loads:
        if load.instance == route.prefill:
            continue
        held = max(
            view.prefill_cached_tokens.get(load.instance, 0),
            view.decode_cached_tokens.get(load.instance, 0),
        )
        rank = (-min(held, usable), load.sequences, load.instance)
        if best is None or rank < best:
            best = rank
    if best is None or -best[0] <= route.cached_tokens:
        return None
    return FetchSource(best[2], -best[0])
