"""`memserve bench transfer`: how fast KV moves, beside what the machine can do at best.

Two processes: `device_put` is measured within the first, all other transports between the two.
Every round times the bounds and each transport with the same bytes, one after the other, so that
what else the machine does meets them all alike.
"""

import socket
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from memserve_jax.bench.pool_processes import PoolWorker, introduce, pool_workers
from memserve_jax.bench.transfer_case import (
    NUM_SCATTERED,
    Bound,
    Case,
    Ends,
    Found,
    Shape,
    TransferReport,
    cases_of,
)
from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.parallel.job import Job

WORKER = "memserve_jax.bench.transfer_process"
MAX_TP = 4
ROUND_BYTES = 4 << 20  # that a measurement moves at least, in calls of one size
MAX_REPEATS = 16

Progress = Callable[[int, int | None, str], None]  # done, total, what


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferBenchOptions:
    """What to measure."""

    transports: tuple[str, ...]
    shapes: tuple[Shape, ...]
    counts: tuple[int, ...]
    num_rounds: int = 7


@dataclass(slots=True, kw_only=True)
class _Times:
    """Of one number of bytes, by round."""

    copy_s: list[float]
    socket_s: list[float]


class _Bench:
    def __init__(self, first: PoolWorker, second: PoolWorker):
        self._first = first
        self._second = second
        self._num_names = 0

    def start(self, with_job: bool) -> None:
        """Starts jax in both, as one job where `collective` is to be measured."""
        workers = (self._first, self._second)
        coordinator = f"127.0.0.1:{_free_port()}"
        started = [
            worker.start(
                "use_devices",
                2 * MAX_TP,
                Job(coordinator=coordinator, process=index, num_processes=2) if with_job else None,
            )
            for index, worker in enumerate(workers)
        ]
        for done in started:
            done.result()
        self._first.ask("connect_raw", self._second.ask("listen_raw"))

    def make_pools(self, shape: Shape, transport: str, num_blocks: int, has_host: bool) -> Ends:
        """Returns two pools with one transport between them."""
        ends = Ends(InstanceId(f"{transport}-source"), InstanceId(f"{transport}-target"))
        is_local = transport == "device_put"
        options = {"hbm_blocks": num_blocks, "host_blocks": num_blocks if has_host else 0}
        tail = tuple(range(MAX_TP, MAX_TP + shape.target_tp))
        target = tail if is_local else tuple(range(shape.target_tp))
        for worker, instance, devices in (
            (self._first, ends.source, tuple(range(shape.source_tp))),
            (self._first if is_local else self._second, ends.target, target),
        ):
            worker.ask("make_pool", instance, shape.layout, devices, (transport,), options)
        if not is_local:
            introduce(self._first, self._second, ([ends.source], [ends.target]))
        return ends

    def drop_pools(self, ends: Ends, transport: str) -> None:
        """Ends them."""
        self._first.ask("drop_pool", ends.source)
        self._receiver(transport).ask("drop_pool", ends.target)

    def measure(self, case: Case, ends: Ends) -> tuple[float, int]:
        """Returns the seconds of one transfer, and the transport's calls for it."""
        repeats = _repeats(case.num_bytes)
        before = self._calls(ends, case)
        if case.is_whole:
            seconds = self._first.ask("transfer_s", ends, case, repeats)
        else:
            receiver = self._receiver(case.transport)
            names = [TransferId(f"put-{self._num_names + i}") for i in range(repeats)]
            self._num_names += repeats
            receiver.ask("expect", ends.target, names, case.num_blocks)
            at = receiver.ask("endpoint", ends.target)
            seconds = self._first.ask("put_s", ends, at, names, case.num_blocks)
            receiver.ask("forget", ends.target, names)
        return seconds, (self._calls(ends, case) - before) // repeats

    def bounds(self, num_bytes: int, times: _Times) -> None:
        """Times the bounds once more."""
        repeats = _repeats(num_bytes)
        times.copy_s.append(self._first.ask("copy_s", num_bytes, repeats))
        times.socket_s.append(self._first.ask("socket_s", num_bytes, repeats))

    def _calls(self, ends: Ends, case: Case) -> int:
        num_calls, _ = self._first.ask("counters", ends.source)[case.transport]
        return num_calls

    def _receiver(self, transport: str) -> PoolWorker:
        return self._first if transport == "device_put" else self._second


def run(options: TransferBenchOptions, progress: Progress) -> TransferReport:
    """Returns what was measured.

    Raises:
      TransferFailedError: a transport that should work here does not.
    """
    cases = cases_of(options.transports, options.shapes, options.counts)
    found: list[Found] = []
    bounds: dict[int, Bound] = {}
    with pool_workers(["first", "second"], module=WORKER) as (first, second):
        bench = _Bench(first, second)
        bench.start("collective" in options.transports)
        for shape in options.shapes:
            mine = [case for case in cases if case.shape == shape]
            pools = _make_pools(bench, shape, mine)
            for num_bytes in sorted({case.num_bytes for case in mine}):
                same = [case for case in mine if case.num_bytes == num_bytes]
                what = f"{shape.name}, {same[0].num_blocks} blocks"
                progress(len(found), len(cases), what)
                bound, some = _measure(bench, same, pools, options.num_rounds)
                bounds.setdefault(num_bytes, bound)
                found += some
            for transport, ends in pools.items():
                bench.drop_pools(ends, transport)
    return TransferReport(
        jax_version=jax.__version__,
        num_rounds=options.num_rounds,
        bounds=tuple(bounds[num_bytes] for num_bytes in sorted(bounds)),
        found=tuple(found),
    )


def _make_pools(bench: _Bench, shape: Shape, cases: Sequence[Case]) -> dict[str, Ends]:
    pools: dict[str, Ends] = {}
    for transport in dict.fromkeys(case.transport for case in cases):
        whole = [case for case in cases if case.transport == transport and case.is_whole]
        # A lease of the largest case, and room for another beside it, or for gaps in it.
        most = max((2 * case.num_blocks for case in whole), default=1)
        num_blocks = max(most, 2 * NUM_SCATTERED) if whole else 1
        pools[transport] = bench.make_pools(shape, transport, num_blocks, bool(whole))
    return pools


def _measure(
    bench: _Bench, cases: Sequence[Case], pools: dict[str, Ends], num_rounds: int
) -> tuple[Bound, list[Found]]:
    num_bytes = cases[0].num_bytes
    times = _Times(copy_s=[], socket_s=[])
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    calls: dict[Case, int] = {}
    for case in cases:
        bench.measure(case, pools[case.transport])  # compiles, and touches memory
    for _ in range(num_rounds):
        bench.bounds(num_bytes, times)
        for case in cases:
            taken_s, calls[case] = bench.measure(case, pools[case.transport])
            seconds[case].append(taken_s)
    found = [
        Found(
            case=case,
            num_calls=calls[case],
            seconds=statistics.median(taken),
            spread=_spread(taken),
            times_copy=_ratio(times.copy_s, taken),
            times_socket=_ratio(times.socket_s, taken),
        )
        for case, taken in seconds.items()
    ]
    bound = Bound(
        num_bytes=num_bytes,
        copy_s=statistics.median(times.copy_s),
        copy_spread=_spread(times.copy_s),
        socket_s=statistics.median(times.socket_s),
        socket_spread=_spread(times.socket_s),
    )
    return bound, found


def _ratio(bound_s: Sequence[float], taken_s: Sequence[float]) -> float:
    return statistics.median(best / taken for best, taken in zip(bound_s, taken_s, strict=True))


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


def _repeats(num_bytes: int) -> int:
    return max(1, min(MAX_REPEATS, ROUND_BYTES // num_bytes))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
