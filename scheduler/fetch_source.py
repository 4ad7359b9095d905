"""Which peer could spare a prefill instance some of the computing (paper section 6, eq. 2).

The scheduler names the peer; whether fetching pays is decided where the KV would go to, with
what that instance really holds.
"""

import numpy as np

from memserve_jax.core.types import FetchSource, Request, Route
from scheduler.view import ClusterView


def fetch_source(
    request: Request, route: Route, view: ClusterView, block_size_tokens: int
) -> FetchSource | None:
    """Returns the live instance that holds most of the prompt, if that is more than the route's.

    Of several the least busy one; none that had better be avoided. At most what a prefill can
    use counts: whole blocks of all tokens but the last.
    """
    if len(view.roster) == 1:
        return None
    usable = (len(request.prompt_token_ids) - 1) // block_size_tokens * block_size_tokens
    held = np.maximum(view.prefill_cached_tokens, view.decode_cached_tokens)
    np.minimum(held, usable, out=held)
    held[view.roster.row_of[route.prefill]] = 0
    if view.is_open is not None:
        held[~view.is_open] = 0
    most = int(held.max())
    if most <= route.cached_tokens:
        return None
    rows = np.flatnonzero(held == most)
    row = int(rows[view.sequences[rows].argmin()])
    return FetchSource(view.roster.instance(row), most)
