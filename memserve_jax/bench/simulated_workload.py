"""Requests for simulations: prompts that share prefixes, arriving at random; seeded."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memserve_jax.core.types import Request, RequestId, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixLoad:
    """Poisson arrivals of prompts, each a shared prefix and an end of its own."""

    num_requests: int
    rate: float  # requests a second
    weights: tuple[float, ...]  # one per prefix, of how often it comes
    prefix_tokens: int
    own_tokens: int
    output_tokens: int  # on average; geometric
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come."""

    request: Request
    output_tokens: int
    prefix: int  # which


def arrivals(load: PrefixLoad) -> Iterator[Arrival]:
    """Gives the requests of `load` in the order of their arrival."""
    random = np.random.default_rng(load.seed)
    prefixes = [
        tuple(random.integers(0, 1 << 31, load.prefix_tokens).tolist()) for _ in load.weights
    ]
    shares = np.cumsum(load.weights) / sum(load.weights)
    places = (np.arange(load.num_requests) + 0.5) / load.num_requests
    # Exactly its share of each prefix, in a random order: no luck in how often one comes.
    chosen = random.permutation(np.searchsorted(shares, places))
    times_s = np.cumsum(random.exponential(1 / load.rate, load.num_requests))
    lengths = random.geometric(1 / load.output_tokens, load.num_requests)
    for number, prefix in enumerate(chosen.tolist()):
        own = tuple(random.integers(0, 1 << 31, load.own_tokens).tolist())
        request = Request(
            request_id=RequestId(f"r{number}"),
            session_id="",
            prompt_token_ids=prefixes[prefix] + own,
            sampling=SamplingParams(max_tokens=int(lengths[number])),
            arrival_s=float(times_s[number]),
        )
        yield Arrival(request, int(lengths[number]), prefix)
