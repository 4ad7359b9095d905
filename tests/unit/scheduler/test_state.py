"""A life of an instance that is over leaves nothing behind."""

import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.cost_model import PrefillWork
from memserve_jax.core.types import InstanceId, RequestId, Role, Route
from scheduler.state import make_state
from tests.helpers.fake_instance import make_status
from tests.helpers.scheduling import in_loop

C0 = InstanceId("c0")


@pytest.mark.parametrize("how", ["left", "restarted", "silent"])
def test_all_that_was_known_goes(how):
    async def scenario():
        clock = ManualClock(1.0)
        state = make_state(SchedulerSection(heartbeat_timeout_s=5.0), clock, model="tiny")
        state.cluster.register(make_status("c0", epoch=1))
        state.trees[Role.COLOCATED].confirm(C0, [b"1", b"2"], 1.0)
        for _ in range(2):
            state.loads.heard(make_status("c0", running=4))
        flight = state.flights.admit(RequestId("r"))
        state.flights.depart(flight, Route(prefill=C0, decode=C0), PrefillWork.of(9, 0))
        reasons: list[str] = []
        flight.on_lost = reasons.append
        line = state.channels.to("127.0.0.1:1")
        if how == "left":
            state.cluster.deregister("c0", 1)
        elif how == "restarted":
            state.cluster.register(make_status("c0", epoch=2))
        else:
            clock.advance(6.0)
            state.cluster.expire()
        assert state.trees.blocks_of(C0) == 0
        assert state.loads.sequences_at(C0) == 1  # ours, until it lands
        assert state.channels.to("127.0.0.1:1") is not line
        lost = {"restarted": "it restarted", "silent": "its heartbeats stopped"}
        assert reasons == ([f"instance c0 was lost: {lost[how]}"] if how in lost else [])
        state.flights.land(flight)
        state.check()
        await state.channels.close()

    in_loop(scenario())
