"""The scheduler's metrics at one moment: what it has counted, and how things stand."""

from collections import Counter
from collections.abc import Iterator

from memserve_jax.core.types import Role
from memserve_jax.telemetry import scheduler_metrics as metrics
from memserve_jax.telemetry.metric import Reading
from scheduler.member import DOWN, DRAINING, SERVING, TARGET
from scheduler.state import State


def readings(state: State) -> Iterator[Reading]:
    """Yields every series. Called in the asyncio loop."""
    yield from state.tally.readings()
    yield Reading(metrics.IN_FLIGHT, (), len(state.flights))
    members = state.cluster.members()
    places = Counter((member.traits.role.value, member.state) for member in members)
    for role in Role:
        for condition in (SERVING, DRAINING, DOWN):
            place = (role.value, condition)
            yield Reading(metrics.INSTANCES, place, places[place])
        yield Reading(metrics.TREE_BLOCKS, (role.value,), state.trees[role].num_blocks)
    now_s = state.clock.now_s()
    for member in members:
        name = (member.traits.role.value, str(member.traits.instance))
        yield Reading(metrics.HEARTBEAT_AGE, name, now_s - member.heard_s)


def metrics_targets(state: State) -> list[str]:
    """Returns where the live instances show their metrics (HOST:PORT)."""
    targets = [member.status.metrics_target for member in state.cluster.members()]
    return [target for target in targets if TARGET.fullmatch(target)]
