"""The scheduler's planner over a simulated cluster: its own decisions, moves in simulated time."""

from memserve_jax.bench.simulated_cluster import SimulatedCluster
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.types import InstanceId, Role
from scheduler.planning import Planning

LOOK_S = 0.05  # whether an instance that is to move has ended what it had


class SimulatedPlanner:
    """Moves the instances of a cluster.

    Attributes:
      moves: When each ended, who it was, and what it became.
    """

    def __init__(self, cluster: SimulatedCluster, section: SchedulerSection, *, rebuild_s: float):
        """Begins to look, every heartbeat.

        Args:
          cluster: Whose instances.
          section: The planner's rules, and the promise that they go by.
          rebuild_s: From an instance's last request to its first in the new role.
        """
        self.moves: list[tuple[float, InstanceId, Role]] = []
        self._cluster = cluster
        self._planning = Planning(cluster.state, section)
        self._period_s = section.heartbeat_s
        self._rebuild_s = rebuild_s
        cluster.timeline.after(self._period_s, self._look)

    def _look(self) -> None:
        decision = self._planning.consider(is_changing=False)
        if decision.instance is not None and decision.role is not None:
            self._cluster.state.cluster.member(decision.instance).is_draining = True
            self._stand_down(decision.instance, decision.role)
        self._cluster.timeline.after(self._period_s, self._look)

    def _stand_down(self, instance: InstanceId, role: Role) -> None:
        timeline = self._cluster.timeline
        if self._cluster.state.flights.sequences_at(instance):
            timeline.after(LOOK_S, lambda: self._stand_down(instance, role))
        else:
            timeline.after(self._rebuild_s, lambda: self._recast(instance, role))

    def _recast(self, instance: InstanceId, role: Role) -> None:
        self._cluster.recast(instance, role)
        self._planning.ended(None)
        self.moves.append((self._cluster.timeline.now_s, instance, role))
