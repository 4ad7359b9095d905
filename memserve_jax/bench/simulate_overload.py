"""Part `overload`: goodput from half of what the instances can take to three times that.

Goodput counts the requests whose first token came within the promise. It is compared with its own
peak in the same run, and with a scheduler that holds nobody back. The cost model is right, or off
by a factor of two either way. Last, one tenant of two sends nine tenths of three times the
capacity: the other, who asks for less than its half, must hardly notice.
"""

from collections.abc import Callable, Sequence

from memserve_jax.bench.simulate_options import SimulateOptions
from memserve_jax.bench.simulate_report import Bound, PartReport
from memserve_jax.bench.simulated_overload import (
    Outcome,
    OverloadedCluster,
    OverloadLoad,
    OverloadShape,
)
from memserve_jax.core.config import CostSection, SchedulerSection
from memserve_jax.core.overload_section import QueueSection, SloSection

PROMISE_S = 1.0
SERVICE_S = 0.05
NUM_INSTANCES = 2
MOST_LOST = 0.1  # of the peak, at three times the capacity
MOST_REFUSED = 0.05  # of the small tenant
OVERLOAD = 3.0
_LOADS = (0.5, 0.8, 1.0, 1.5, 2.0, OVERLOAD)
_COSTS = {"right": 1.0, "half": 0.5, "double": 2.0}
_HEADINGS = ("load", "open door", *(f"gate, cost {name}" for name in _COSTS), "refused", "p99 TTFT")


def simulate_overload(options: SimulateOptions, told: Callable[[str], None]) -> PartReport:
    """Returns the goodput at each load, with and without the gate."""
    loads = (1.0, OVERLOAD) if options.quick else _LOADS
    values: list[dict[str, object]] = []
    for load in loads:
        told(f"{load} times the capacity")
        values.append({"load": load, **_at(options, load)})
    gated = [name for name in values[0] if name.startswith("gate_")]
    peak = max(float(str(value[name])) for value in values for name in gated)
    told("two tenants")
    small = _two_tenants(options)
    bounds = [
        Bound(
            what=f"goodput lost at {OVERLOAD:g} times the capacity, {name.replace('_', ', cost ')}",
            found=1 - float(str(values[-1][name])) / peak,
            most=MOST_LOST,
        )
        for name in gated
    ]
    bounds.append(
        Bound(what="of the small tenant, late or refused", found=small, most=MOST_REFUSED)
    )
    return PartReport(
        part="overload",
        title=f"Goodput, requests/s with a first token within {PROMISE_S:g} s; "
        f"capacity {NUM_INSTANCES / SERVICE_S:g}, peak {peak:.1f}",
        headings=_HEADINGS,
        rows=tuple(_row(value, gated) for value in values),
        values=(*values, {"small_tenant_lost": small}),
        bounds=tuple(bounds),
    )


def _row(value: dict[str, object], gated: Sequence[str]) -> tuple[str, ...]:
    return (
        f"{value['load']} x",
        f"{value['open_door']:.1f}",
        *(f"{value[name]:.1f}" for name in gated),
        f"{value['refused']:.0%}",
        f"{value['ttft_p99_s']:.2f} s",
    )


def _at(options: SimulateOptions, load: float) -> dict[str, float]:
    found: dict[str, float] = {}
    nobody_waits = QueueSection(instance_s=1e9, instance_sequences=1_000_000)
    found["open_door"] = _goodput(
        _run(options, load, SchedulerSection(queue=nobody_waits, max_in_flight=1_000_000))
    )
    for name, factor in _COSTS.items():
        section = _gated(factor * SERVICE_S)
        outcomes = _run(options, load, section)
        found[f"gate_{name}"] = _goodput(outcomes)
        if factor == 1:
            served = sorted(each.ttft_s for each in outcomes if each.ttft_s is not None)
            found["refused"] = 1 - len(served) / len(outcomes)
            found["ttft_p99_s"] = served[int(0.99 * (len(served) - 1))]
    return found


def _two_tenants(options: SimulateOptions) -> float:
    """Returns the share of the small tenant's requests that came late or were refused."""
    shares = (("large", 0.9), ("small", 0.1))
    outcomes = _run(options, OVERLOAD, _gated(SERVICE_S), shares)
    small = [each for each in outcomes if each.tenant == "small"]
    return 1 - sum(_is_good(each) for each in small) / len(small)


def _gated(fixed_s: float) -> SchedulerSection:
    return SchedulerSection(
        max_in_flight=1_000_000,
        cost=CostSection(fixed_s=fixed_s, s_per_token=0.0),
        slo=SloSection(ttft_s=PROMISE_S),
    )


def _run(
    options: SimulateOptions,
    load: float,
    section: SchedulerSection,
    shares: tuple[tuple[str, float], ...] = (("", 1.0),),
) -> list[Outcome]:
    shape = OverloadShape(num_instances=NUM_INSTANCES, service_s=SERVICE_S, section=section)
    return OverloadedCluster(shape).run(
        OverloadLoad(
            rate=load * shape.capacity,
            seconds=_seconds(options),
            shares=shares,
            seed=options.seed,
        )
    )


def _seconds(options: SimulateOptions) -> float:
    return 10.0 if options.quick else 30.0


def _goodput(outcomes: Sequence[Outcome]) -> float:
    """Returns requests a second that were served as promised, over the time of arrivals."""
    if not outcomes:
        return 0.0
    span_s = max(each.arrival_s for each in outcomes)
    return sum(_is_good(each) for each in outcomes) / span_s


def _is_good(outcome: Outcome) -> bool:
    return outcome.ttft_s is not None and outcome.ttft_s <= PROMISE_S
