"""The scheduler's series at one moment."""

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.types import InstanceId, RequestId, Role
from memserve_jax.telemetry.scheduler_metrics import SCHEDULER_METRICS
from scheduler.readings import readings
from scheduler.state import State, make_state
from tests.helpers.fake_instance import make_status
from tests.helpers.scheduling import in_loop


def values(state: State) -> dict[tuple[str, ...], object]:
    found = list(readings(state))
    for reading in found:
        assert SCHEDULER_METRICS[reading.metric.name] is reading.metric
        assert len(reading.labels) == len(reading.metric.labels)
    return {
        (reading.metric.name.removeprefix("memserve_scheduler_"), *reading.labels): reading.value
        for reading in found
    }


def test_members_trees_and_flights_are_shown():
    async def scenario():
        clock = ManualClock(1.0)
        state = make_state(SchedulerSection(heartbeat_timeout_s=5.0), clock, model="tiny")
        before = values(state)
        assert before["requests_in_flight",] == before["instances", "colocated", "serving"] == 0
        state.cluster.register(make_status("c0"))
        state.cluster.register(make_status("c1"))
        state.cluster.member("c1").is_draining = True
        state.trees[Role.COLOCATED].confirm(InstanceId("c0"), [b"1", b"2"], 1.0)
        flight = state.flights.admit(RequestId("r"))
        clock.advance(2.5)
        after = values(state)
        assert after["requests_in_flight",] == 1
        assert after["instances", "colocated", "serving"] == 1
        assert after["instances", "colocated", "draining"] == 1
        assert after["instances", "prefill", "serving"] == 0
        assert after["prompt_tree_blocks", "colocated"] == 2
        assert after["heartbeat_age_seconds", "colocated", "c0"] == 2.5
        state.flights.land(flight)
        clock.advance(6.0)
        state.cluster.expire()
        gone = values(state)
        assert ("heartbeat_age_seconds", "colocated", "c0") not in gone
        assert gone["instance_departures_total", "silent"] == 2

    in_loop(scenario())
