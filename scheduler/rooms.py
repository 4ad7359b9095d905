"""Which instances have room for one more request, and how long one would wait there."""

import numpy as np
import numpy.typing as npt

from memserve_jax.core.block_keys import block_keys
from memserve_jax.core.block_names import BlockNames
from memserve_jax.core.clock import Clock
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.cost_file import prefill_cost_of
from memserve_jax.core.types import InstanceId, Request, Role
from scheduler.cluster import Cluster
from scheduler.load_table import CostTable, LoadTable
from scheduler.prompt_trees import PromptTrees, reusable_tokens
from scheduler.roster import Column, Roster
from scheduler.tree_rows import TreeRows
from scheduler.view import Seconds

SHARE_OF_PROMISE = 0.5  # of `scheduler.slo.ttft_s` that may pass in an instance's queue
NEWEST = 0.1  # weight of the latest prefill in how far the cost model is off
MOST_OFF = 10.0  # times too much or too little: more is a hiccup


class Rooms:
    """Looks at the instances, all at once. Lives in the asyncio loop."""

    def __init__(
        self,
        cluster: Cluster,
        loads: LoadTable,
        trees: PromptTrees,
        section: SchedulerSection,
        clock: Clock,
    ):
        """Knows nothing by itself.

        Args:
          cluster: Who is there.
          loads: Who is busy.
          trees: Who holds what.
          section: How much an instance is given ahead, and what a prefill costs.
          clock: Of the trees.

        Raises:
          ConfigError: the file of the cost cannot be used.
        """
        self._cluster = cluster
        self._loads = loads
        self._trees = TreeRows(trees)
        self._clock = clock
        self._costs = CostTable(prefill_cost_of(section.cost))
        self._most_sequences = section.queue.instance_sequences
        self._most_s = section.queue.instance_s
        if section.slo.ttft_s is not None:
            self._most_s = min(self._most_s, SHARE_OF_PROMISE * section.slo.ttft_s)
        self._stretch = 1.0  # of predictions: what prefills took over what they should have

    def predicted_s(self, instance: InstanceId) -> float:
        """Returns what the cost model says of all that waits for prefill at an instance."""
        roster = self._cluster.roster
        row = roster.row_of.get(instance)
        if row is None:
            return 0.0
        columns = self._loads.columns(roster)
        for cost, rows in self._costs.costs(roster, columns.prefill_tokens_per_s):
            if row in rows:
                return float(cost.seconds_each(columns.queued.at(np.array([row], np.intp)))[0])
        return 0.0

    def learn(self, predicted_s: float, actual_s: float) -> None:
        """Takes account of a first token: predictions are stretched by what such show."""
        if predicted_s > 0:
            off = min(MOST_OFF, max(1 / MOST_OFF, actual_s / predicted_s))
            self._stretch += NEWEST * (off - self._stretch)

    @property
    def num_prefillers(self) -> int:
        """Instances that a request can start on."""
        return len(self._cluster.roster.prefillers)

    def has_room(self, num_called: int) -> bool:
        """Whether one more request can go, beside `num_called` that have not been sent yet.

        Also where nothing can be routed to: who finds that out, says so.
        """
        roster = self._cluster.roster
        if not roster.can_serve:
            return True
        is_open = ~self._is_full(roster)
        rows = roster.prefillers
        decode_rows = roster.rows_of.get(Role.DECODE)
        if decode_rows is not None and not is_open[decode_rows].any():
            rows = rows[roster.is_colocated[rows] > 0]
        return int(is_open[rows].sum()) > num_called

    def least_queued_s(self) -> float:
        """Returns what the least busy prefill or colocated instance has to do first; 0: none."""
        roster = self._cluster.roster
        rows = roster.prefillers
        if not len(rows):
            return 0.0
        return float(self._queued_s(roster)[rows].min())

    def decoders_are_full(self) -> bool:
        """Whether there are decode instances, and all of them have their fill."""
        roster = self._cluster.roster
        rows = roster.rows_of.get(Role.DECODE)
        return rows is not None and bool(self._is_full(roster)[rows].all())

    def full(self) -> frozenset[InstanceId]:
        """Returns the instances that have their fill."""
        roster = self._cluster.roster
        rows = np.flatnonzero(self._is_full(roster)).tolist()
        return frozenset(roster.instance(row) for row in rows)

    def expected_s(self, request: Request, *, looks_up: bool) -> tuple[float, float]:
        """Returns the seconds to the first token on the best instance, and of them its queue.

        With `looks_up` what it would find cached counts; without, it is as if nothing were.
        """
        roster = self._cluster.roster
        rows = roster.prefillers
        if not len(rows):
            return 0.0, 0.0
        cached = np.zeros(len(roster), np.int64)
        if looks_up:
            cached = self._cached_tokens(roster, request)
        columns = self._loads.columns(roster)
        busy_s, prefill_s = np.zeros((2, len(roster)))
        for cost, some in self._costs.costs(roster, columns.prefill_tokens_per_s):
            busy_s[some] = self._stretch * cost.seconds_each(columns.queued.at(some))
            alone_s = cost.prefill_s_each(len(request.prompt_token_ids), cached[some])
            prefill_s[some] = self._stretch * alone_s
        best = rows[int(np.argmin((busy_s + prefill_s)[rows]))]
        return float(busy_s[best] + prefill_s[best]), float(busy_s[best])

    def _is_full(self, roster: Roster) -> npt.NDArray[np.bool_]:
        is_full = self._loads.columns(roster).sequences >= self._most_sequences
        return is_full | (self._queued_s(roster) >= self._most_s)

    def _queued_s(self, roster: Roster) -> Seconds:
        columns = self._loads.columns(roster)
        queued_s = np.zeros(len(roster))
        for cost, rows in self._costs.costs(roster, columns.prefill_tokens_per_s):
            queued_s[rows] = self._stretch * cost.seconds_each(columns.queued.at(rows))
        return queued_s

    def _cached_tokens(self, roster: Roster, request: Request) -> Column:
        size = self._cluster.block_size_tokens
        assert size is not None, "a roster that serves without an instance"
        names = BlockNames(request.cache_salt, block_keys(request.prompt_token_ids, size))
        held = self._trees.held_blocks(roster, names, self._clock.now_s())
        return reusable_tokens(len(request.prompt_token_ids), held, size)
