"""Part `planner`: a load that turns from long prompts to long answers, with and without a planner.

Four instances behind the scheduler's gate. First prompts are long and answers short, and prefill
would need three of them; then it is the other way round, and decode would. A request is good if its
first token and the time between its tokens are within the promise; it is missed if they are not, or
if the gate refused it. No fixed split serves both halves.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.bench.simulate_report import Bound, PartReport
from memserve_jax.bench.simulated_cluster import (
    ClusterShape,
    GateShape,
    SimulatedCluster,
    SimulatedRecord,
)
from memserve_jax.bench.simulated_instance import InstanceShape
from memserve_jax.bench.simulated_planner import SimulatedPlanner
from memserve_jax.bench.simulated_workload import Arrival, PrefixLoad, arrivals
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.overload_section import QueueSection, SloSection
from memserve_jax.core.planner_section import PlannerSection
from memserve_jax.core.types import RequestId, Role

PROMISE_TTFT_S = 2.0
PROMISE_TPOT_S = 0.025
REBUILD_S = 5.0  # engine and shapes of the new role
MOST_MISSED = 0.5  # of what the same cluster misses without a planner
MOST_MOVES = 5  # two to prefill and two to decode; one may be too many
_NUM_INSTANCES = 4
_PHASES = (  # requests a second, tokens of a prompt, of an answer
    ("long prompts", 15.0, 4096, 32),
    ("long answers", 28.0, 64, 512),
)
_GATE = GateShape(queue=QueueSection(instance_sequences=40), slo=SloSection(ttft_s=PROMISE_TTFT_S))
_SECTION = SchedulerSection(
    queue=_GATE.queue,
    slo=_GATE.slo,
    planner=PlannerSection(enabled=True, hold_s=5.0, pause_s=15.0),
)
_HEADINGS = ("start", "planner", "moves", *(f"good, {name}" for name, *_ in _PHASES))
_HEADINGS += ("good, all", "refused", "goodput, requests/s")


def simulate_planner(options: SimulateOptions, told: Callable[[str], None]) -> PartReport:
    """Returns how many requests were good under each fixed split, and with the planner."""
    values: list[dict[str, Any]] = []
    for num_prefill in (2,) if options.quick else (2, 1, 3):
        for has_planner in (False, True):
            name = f"{num_prefill}p{_NUM_INSTANCES - num_prefill}d"
            told(f"{name}, {'with' if has_planner else 'without'} planner")
            found = _run(options, num_prefill, has_planner)
            values.append({"start": name, "planner": has_planner, **found})
    bounds: list[Bound] = []
    for without, with_planner in zip(values[::2], values[1::2], strict=True):
        bounds.append(
            Bound(
                what=f"{without['start']}: missed with the planner, of those missed without",
                found=with_planner["missed"] / without["missed"],
                most=MOST_MISSED,
            )
        )
        bounds.append(
            Bound(what=f"{without['start']}: moves", found=with_planner["moves"], most=MOST_MOVES)
        )
    return PartReport(
        part="planner",
        title=f"{_NUM_INSTANCES} instances; good: first token within {PROMISE_TTFT_S:g} s and "
        f"{1e3 * PROMISE_TPOT_S:g} ms a token after it",
        headings=_HEADINGS,
        rows=tuple(_row(value) for value in values),
        values=tuple(values),
        bounds=tuple(bounds),
    )


def _row(value: dict[str, Any]) -> tuple[str, ...]:
    return (
        value["start"],
        "on" if value["planner"] else "off",
        f"{value['moves']}",
        *(f"{value['good'][name]:.0%}" for name, *_ in _PHASES),
        f"{1 - value['missed'] / value['requests']:.0%}",
        f"{value['refused'] / value['requests']:.0%}",
        f"{value['goodput']:.1f}",
    )


def _run(options: SimulateOptions, num_prefill: int, has_planner: bool) -> dict[str, Any]:
    roles = (Role.PREFILL,) * num_prefill + (Role.DECODE,) * (_NUM_INSTANCES - num_prefill)
    cluster = SimulatedCluster(
        ClusterShape(
            roles=roles,
            instance=InstanceShape(cost=options.cost, block_size_tokens=64),
            policy=options.policy,
            link_bytes_per_s=50e9,
            gate=_GATE,
        )
    )
    planner = None
    if has_planner:
        planner = SimulatedPlanner(cluster, _SECTION, rebuild_s=REBUILD_S)
    phase_s = 120.0 if options.quick else 200.0
    phase_of: dict[RequestId, str] = {}
    for name, arrival in _arrivals(options.seed, phase_s):
        phase_of[arrival.request.request_id] = name
        cluster.offer(arrival.request, arrival.output_tokens)
    cluster.run()
    cluster.check()
    good = collections.Counter(
        phase_of[record.request.request_id] for record in cluster.records if _is_good(record)
    )
    asked = collections.Counter(phase_of.values())
    num_good = good.total()
    return {
        "requests": asked.total(),
        "good": {name: good[name] / asked[name] for name in asked},
        "refused": len(cluster.refused),
        "missed": asked.total() - num_good,
        "goodput": num_good / (phase_s * len(_PHASES)),
        "moves": len(planner.moves) if planner else 0,
    }


def _arrivals(seed: int, phase_s: float) -> Iterator[tuple[str, Arrival]]:
    for number, (name, rate, prompt_tokens, output_tokens) in enumerate(_PHASES):
        load = PrefixLoad(
            num_requests=int(rate * phase_s),
            rate=rate,
            weights=(1.0,),
            prefix_tokens=0,
            own_tokens=prompt_tokens,
            output_tokens=output_tokens,
            seed=seed + number,
        )
        for arrival in arrivals(load):
            request = dataclasses.replace(
                arrival.request,
                request_id=RequestId(f"{number}-{arrival.request.request_id}"),
                arrival_s=number * phase_s + arrival.request.arrival_s,
            )
            yield name, dataclasses.replace(arrival, request=request)


def _is_good(record: SimulatedRecord) -> bool:
    tpot_s = record.tpot_s
    return record.ttft_s <= PROMISE_TTFT_S and (tpot_s is None or tpot_s <= PROMISE_TPOT_S)
