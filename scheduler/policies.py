"""Where a request should run. A policy is a pure function of the request and a snapshot.

Ties go to the instance with the fewest indexed blocks, then by rendezvous hash of (first block,
instance): one view has one answer on every scheduler, and equal instances share cold traffic.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from memserve_jax.core.types import Request, Role, Route
from scheduler.roster import Rows, hash_of
from scheduler.view import ClusterView, Seconds

# Holding a whole prompt spares a decode instance the transfer, not the decoding: it is worth
# this many sequences' company and no more, so that a popular prefix cannot pile up on one.
DECODE_AFFINITY_SEQUENCES = 2.0
# An instance with more sequences than these, and than so many times the mean, has a crowd.
# Bounded loads, as in consistent hashing with bounded loads (arXiv 1608.01350).
CROWD_SEQUENCES = 8.0
CROWD_OF_MEAN = 1.5

_Any = npt.NDArray[Any]
_Key = Callable[[], _Any]  # a column


class Policy(Protocol):
    """Add one by writing the function and naming it in `POLICIES`."""

    def __call__(self, request: Request, view: ClusterView, /) -> Route:
        """Chooses instances for `request`.

        Raises:
          NoInstanceError: no live instance prefills, or none decodes.
        """
        ...


def round_robin(request: Request, view: ClusterView) -> Route:
    """Goes through every pair of a prefill and a decode instance in turn."""
    prefills = view.prefillers()
    prefill = int(prefills[view.turn % len(prefills)])
    if view.roster.is_colocated[prefill]:
        return _route(prefill, prefill, view, "turn")
    decodes = view.decoders()
    decode = decodes[view.turn // len(prefills) % len(decodes)]
    return _route(prefill, int(decode), view, "turn")


def least_load(request: Request, view: ClusterView) -> Route:
    """Goes where the fewest requests are, then the fewest tokens to prefill."""
    load = (lambda: view.sequences, lambda: view.queued.new_tokens)
    return _choose(view, prefill_by=load, decode_by=load, reason="load")


def session(request: Request, view: ClusterView) -> Route:
    """Keeps a session where it is (rendezvous hashing: one that leaves moves only its own).

    A request without a session goes by its first block.
    """
    key = request.session_id.encode() or view.first_block
    hashed = (lambda: rendezvous(key, view.roster.hashes),)
    return _choose(view, prefill_by=hashed, decode_by=hashed, reason="session")


def longest_prefix(request: Request, view: ClusterView) -> Route:
    """Goes where most of the prompt is cached already (paper section 6), whatever the load."""
    return _choose(
        view,
        prefill_by=(lambda: -view.prefill_cached_tokens,),
        decode_by=(lambda: -view.decode_cached_tokens, lambda: view.sequences),
        reason="prefix",
    )


def min_ttft(request: Request, view: ClusterView) -> Route:
    """Goes where the prefill would end soonest (paper eq. 1: the queue, and exec(x, y)).

    Waiting in a queue and computing a prefix again are both seconds, so a warm but busy instance
    loses to a cold idle one exactly when it should.

    Where a prefix is cached its prefill is so short that no queue shows, however popular it is. So
    an instance with a crowd of sequences is passed over: the next one computes the prefix once
    and holds it too, and a hot prefix ends up on as many instances as its load needs.

    Whoever leaves the owner of its prefix costs the cluster a second copy of it, so it leaves for
    more than a little: see `ClusterView.min_gain`.
    """
    num_tokens = len(request.prompt_token_ids)
    return _choose(
        view,
        prefill_by=(lambda: crowded(view), lambda: stay_s(request, view)),
        decode_by=(
            lambda: (
                view.sequences
                - DECODE_AFFINITY_SEQUENCES * (view.decode_cached_tokens / num_tokens)
            ),
        ),
        reason="ttft",
    )


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "min_ttft": min_ttft,
        "longest_prefix": longest_prefix,
        "session": session,
        "least_load": least_load,
        "round_robin": round_robin,
    }
)


def ttft_s(request: Request, view: ClusterView) -> Seconds:
    """Returns the paper's eq. 1 for each row: seconds until a prefill of `request` would end."""
    return view.queued_s() + view.prefill_s(len(request.prompt_token_ids))


def stay_s(request: Request, view: ClusterView) -> Seconds:
    """Returns eq. 1 for each row, less what leaving would have to save where most is cached."""
    times_s, rows = ttft_s(request, view), view.prefillers()
    most = view.prefill_cached_tokens[rows].max()
    if most and view.min_gain:
        times_s = np.where(
            view.prefill_cached_tokens == most, (1 - view.min_gain) * times_s, times_s
        )
    return times_s


def crowded(view: ClusterView) -> npt.NDArray[np.bool_]:
    """Returns which rows have too many sequences, seen beside those that requests start on."""
    rows = view.prefillers()
    mean = int(view.sequences[rows].sum()) / len(rows)
    return view.sequences > max(CROWD_SEQUENCES, CROWD_OF_MEAN * mean)


def rendezvous(key: bytes, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Returns the rank for `key` of each instance, given by the hash of its name.

    The lowest of all instances wins: one that leaves moves only what it had. The bits are mixed
    as splitmix64 ends (doi:10.1145/2714064.2660195).
    """
    mixed = hashes ^ np.uint64(hash_of(key))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _choose(
    view: ClusterView, *, prefill_by: Sequence[_Key], decode_by: Sequence[_Key], reason: str
) -> Route:
    """Returns the instances whose columns are least, the first column first.

    A colocated one does both. Columns are worked out while they decide something.
    """
    prefill = _least(view, view.prefillers(), prefill_by)
    if view.roster.places[prefill].role is Role.COLOCATED:
        return _route(prefill, prefill, view, reason)
    return _route(prefill, _least(view, view.decoders(), decode_by), view, reason)


def _least(view: ClusterView, rows: Rows, by: Sequence[_Key]) -> int:
    for column in (*by, lambda: view.indexed_blocks):
        if len(rows) == 1:
            break
        rows = _at_least(column(), rows)
    if len(rows) == 1:
        return int(rows[0])
    ranks = rendezvous(view.first_block, view.roster.hashes[rows])
    return int(rows[ranks.argmin()])  # of equal ranks the first: rows are in the order of names


def _at_least(column: _Any, rows: Rows) -> Rows:
    """Returns the rows of `rows` whose value in `column` is the least of theirs."""
    values = column[rows]
    return rows[values == values.min()]


def _route(prefill: int, decode: int, view: ClusterView, reason: str) -> Route:
    return Route(
        prefill=view.roster.instance(prefill),
        decode=view.roster.instance(decode),
        cached_tokens=int(view.prefill_cached_tokens[prefill]),
        reason=reason,
    )
