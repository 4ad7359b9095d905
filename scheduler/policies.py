"""Where a request should run. A policy is a pure function of the request and a snapshot.

Ties go to the instance with the fewest indexed blocks, then by rendezvous hash of (first block,
instance): one view has one answer on every scheduler, and equal instances share cold traffic.
"""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Protocol

from memserve_jax.core.cost_model import PrefillWork
from memserve_jax.core.types import InstanceId, Request, Role, Route
from scheduler.view import ClusterView, InstanceLoad

# Holding a whole prompt spares a decode instance the transfer, not the decoding: it is worth
# this many sequences' company and no more, so that a popular prefix cannot pile up on one.
DECODE_AFFINITY_SEQUENCES = 2.0
# An instance with more sequences than these, and than so many times the mean, has a crowd.
# Bounded loads, as in consistent hashing with bounded loads (arXiv 1608.01350).
CROWD_SEQUENCES = 8.0
CROWD_OF_MEAN = 1.5


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
    prefills = sorted(view.prefillers(), key=lambda load: load.instance)
    prefill = prefills[view.turn % len(prefills)]
    if prefill.role is Role.COLOCATED:
        return _route(prefill, prefill, view, "turn")
    decodes = sorted(view.decoders(), key=lambda load: load.instance)
    return _route(prefill, decodes[view.turn // len(prefills) % len(decodes)], view, "turn")


def least_load(request: Request, view: ClusterView) -> Route:
    """Goes where the fewest requests are, then the fewest tokens to prefill."""

    def load_of(load: InstanceLoad) -> tuple[int, int]:
        return load.sequences, load.queued.new_tokens

    return _choose(view, prefill_by=load_of, decode_by=load_of, reason="load")


def session(request: Request, view: ClusterView) -> Route:
    """Keeps a session where it is (rendezvous hashing: one that leaves moves only its own).

    A request without a session goes by its first block.
    """
    key = request.session_id.encode() or view.first_block

    def hashed(load: InstanceLoad) -> bytes:
        return rendezvous(key, load.instance)

    return _choose(view, prefill_by=hashed, decode_by=hashed, reason="session")


def longest_prefix(request: Request, view: ClusterView) -> Route:
    """Goes where most of the prompt is cached already (paper section 6), whatever the load."""

    def missing(load: InstanceLoad) -> int:
        return -view.prefill_cached_tokens.get(load.instance, 0)

    def missing_or_busy(load: InstanceLoad) -> tuple[int, int]:
        return -view.decode_cached_tokens.get(load.instance, 0), load.sequences

    return _choose(view, prefill_by=missing, decode_by=missing_or_busy, reason="prefix")


def min_ttft(request: Request, view: ClusterView) -> Route:
    """Goes where the prefill would end soonest (paper eq. 1: the queue, and exec(x, y)).

    Waiting in a queue and computing a prefix again are both seconds, so a warm but busy instance
    loses to a cold idle one exactly when it should. On a colocated instance every sequence that
    decodes adds a token to the steps of the prefill.

    Where a prefix is cached its prefill is so short that no queue shows, however popular it is. So
    an instance with a crowd of sequences is passed over: the next one computes the prefix once
    and holds it too, and a hot prefix ends up on as many instances as its load needs.
    """
    num_tokens = len(request.prompt_token_ids)
    prefills = view.prefillers()
    mean = sum(load.sequences for load in prefills) / len(prefills)
    most = max(CROWD_SEQUENCES, CROWD_OF_MEAN * mean)

    def ttft_s(load: InstanceLoad) -> tuple[bool, float]:
        cached = view.prefill_cached_tokens.get(load.instance, 0)
        decoding = load.sequences if load.role is Role.COLOCATED else 0
        queued_s = load.cost.seconds(load.queued + PrefillWork(new_tokens=decoding))
        return load.sequences > most, queued_s + load.cost.prefill_s(num_tokens, cached)

    def crowd(load: InstanceLoad) -> float:
        held = view.decode_cached_tokens.get(load.instance, 0) / num_tokens
        return load.sequences - DECODE_AFFINITY_SEQUENCES * held

    return _choose(view, prefill_by=ttft_s, decode_by=crowd, reason="ttft")


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "min_ttft": min_ttft,
        "longest_prefix": longest_prefix,
        "session": session,
        "least_load": least_load,
        "round_robin": round_robin,
    }
)


def rendezvous(key: bytes, instance: InstanceId) -> bytes:
    """Returns the rank of `instance` for `key`: the lowest of all instances wins."""
    return blake2b(key, digest_size=8, person=_person(instance)).digest()


def _person(instance: InstanceId) -> bytes:
    """Returns 16 bytes for `instance`: blake2b's own way to make one hash many."""
    return blake2b(instance.encode(), digest_size=16).digest()


def _choose(
    view: ClusterView,
    *,
    prefill_by: Callable[[InstanceLoad], object],
    decode_by: Callable[[InstanceLoad], object],
    reason: str,
) -> Route:
    """Returns the instances whose keys are least; a colocated one does both."""

    def tie(load: InstanceLoad) -> tuple[int, bytes, InstanceId]:
        hashed = rendezvous(view.first_block, load.instance)
        return load.indexed_blocks, hashed, load.instance

    prefill = _least(view.prefillers(), prefill_by, tie)
    if prefill.role is Role.COLOCATED:
        return _route(prefill, prefill, view, reason)
    return _route(prefill, _least(view.decoders(), decode_by, tie), view, reason)


def _least(
    loads: tuple[InstanceLoad, ...],
    by: Callable[[InstanceLoad], object],
    tie: Callable[[InstanceLoad], object],
) -> InstanceLoad:
    return min(loads, key=lambda load: (by(load), tie(load)))


def _route(prefill: InstanceLoad, decode: InstanceLoad, view: ClusterView, reason: str) -> Route:
    return Route(
        prefill=prefill.instance,
        decode=decode.instance,
        cached_tokens=view.prefill_cached_tokens.get(prefill.instance, 0),
        reason=reason,
    )
