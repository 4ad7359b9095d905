"""What it takes to bring KV from a peer: a cluster of two, asked for the same prompt twice.

The second instance in turn fetches what the first one computed. The time is the instance's own,
from its call to the blocks' being visible, over real sockets, control and bytes.
"""

import pathlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from memserve_jax.bench.local_server import local_server, serve_command
from memserve_jax.client.client import Client
from memserve_jax.proto import memserve_pb2 as pb

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPoint:
    """Some KV, and what it took to come."""

    num_bytes: int
    seconds: tuple[float, ...]  # a round each

    @property
    def median_s(self) -> float:
        """Of the rounds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFit:
    """Latency and bandwidth."""

    transport: str
    fixed_s: float
    bytes_per_s: float
    error: float  # mean, relative, of the points themselves


def fit_fetch(points: Sequence[FetchPoint], *, transport: str) -> FetchFit:
    """Returns the latency and the bandwidth that fit `points` best, neither negative.

    A bandwidth that no point shows, as a fetch of many bytes is no slower than one of few, is the
    best that was seen.
    """
    seconds = np.array([point.median_s for point in points])
    sizes = np.array([float(point.num_bytes) for point in points])
    unit = float(sizes.max())
    design = np.stack([np.ones(len(points)), sizes / unit], axis=1) / seconds[:, None]
    (fixed_s, unit_s), _ = nnls(design, np.ones(len(points)))
    seen = float((sizes / seconds).max())
    bytes_per_s = unit / unit_s if unit_s > 0 else seen
    error = float(np.mean(np.abs((fixed_s + sizes / bytes_per_s) / seconds - 1)))
    return FetchFit(
        transport=transport, fixed_s=float(fixed_s), bytes_per_s=float(bytes_per_s), error=error
    )


def measure_fetches(
    arguments: Sequence[str],
    *,
    lengths: Sequence[int],
    num_rounds: int,
    folder: pathlib.Path,
    told: Callable[[str], None],
) -> tuple[str, list[FetchPoint]]:
    """Returns the transport, and the times of fetching prompts of `lengths` tokens.

    Args:
      arguments: Of `memserve serve`: model and engine as they are to be fitted.
      lengths: Each of two blocks at least.
      num_rounds: Of each; one more is played first.
      folder: Gets the server's log.
      told: Called before each round.
    """
    fixed = ("--topology", "2c", "--processes", "--set", "mempool.fetch=always")
    fixed += ("--set", "scheduler.policy=round_robin", "--set", "mempool.prefetch_timeout_s=60")
    command = serve_command([*arguments, *fixed])
    random = np.random.default_rng(1)
    found: dict[int, list[tuple[int, float]]] = {length: [] for length in lengths}
    with (
        local_server(command, log_path=folder / "fetch.log", ready_timeout_s=600.0) as target,
        Client(target, timeout_s=_TIMEOUT_S) as client,
    ):
        for round_ in range(num_rounds + 1):
            told(f"fetch round {round_} of {num_rounds}")
            for length in lengths:
                prompt = random.integers(3, 200, length).tolist()
                point = _fetch(client, prompt)
                if round_:
                    found[length].append(point)
        transport = _transport(client.status())
    return transport, [
        FetchPoint(num_bytes=points[0][0], seconds=tuple(seconds for _, seconds in points))
        for points in found.values()
    ]


def _fetch(client: Client, prompt: list[int]) -> tuple[int, float]:
    """Has a new prompt computed by one instance and fetched by the other: bytes, and seconds."""
    before = _totals(client.status())
    for _ in range(2):
        client.generate(token_ids=prompt, max_tokens=1, temperature=0.0, ignore_eos=True)
    client.quiesce(timeout_s=_TIMEOUT_S)
    after = _totals(client.status())
    num_fetches = after[0] - before[0]
    assert num_fetches == 1, f"{num_fetches} fetches of one prompt"
    return after[1] - before[1], after[2] - before[2]


def _totals(status: pb.ClusterStatusReply) -> tuple[int, int, float]:
    counters = [instance.counters for instance in status.instances]
    return (
        sum(each.kv_fetches_chosen for each in counters),
        sum(each.kv_bytes_received for each in counters),
        float(sum(each.kv_fetch_actual_s for each in counters)),
    )


def _transport(status: pb.ClusterStatusReply) -> str:
    bytes_of: dict[str, int] = {}
    for instance in status.instances:
        for transport in instance.transports:
            name = transport.transport
            bytes_of[name] = bytes_of.get(name, 0) + transport.bytes
    return max(bytes_of, key=lambda name: bytes_of[name])
