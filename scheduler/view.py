"""What the scheduler believes about the cluster at one moment, for one request: in columns.

Every column has a row for each instance of the roster, so a policy compares thousands of
instances in a few array operations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memserve_jax.core.cost_model import PrefillCost, PrefillWork, WorkColumns
from memserve_jax.core.errors import NoInstanceError
from memserve_jax.core.types import InstanceId, Role
from scheduler.roster import Column, Mask, Place, Roster, Rows, make_roster

Seconds = npt.NDArray[np.float64]

_NO_ROWS: Rows = np.array([], np.intp)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterView:
    """A snapshot made for one request, so a policy needs no lock, no clock and no counter."""

    roster: Roster
    costs: Sequence[tuple[PrefillCost, Rows]]  # of a prefill at these rows; each row once
    queued: WorkColumns  # prefills that are not finished
    sequences: Column  # requests: waiting, running, on their way there
    indexed_blocks: Column  # historical blocks the global tree knows of
    prefill_cached_tokens: Column  # of this prompt, that a prefill there skips
    decode_cached_tokens: Column  # of this prompt, that need not move there
    first_block: bytes  # the key of the prompt's first block; all of a shorter prompt
    is_open: Mask | None = None  # rows that may be chosen, some of each role; None: all
    turn: int = 0  # requests routed before
    min_gain: float = 0.0  # share of the time to first token that leaving a prefix has to save

    def prefillers(self) -> Rows:
        """Returns the rows that a request can start on (see `make_roster`).

        Raises:
          NoInstanceError: there are none.
        """
        if not self.roster.can_serve:
            names = (f"{place.instance} ({place.role.value})" for place in self.roster.places)
            raise NoInstanceError(
                f"no instance to route to: live are {', '.join(names) or 'none'}, "
                "needed: a colocated one, or a prefill and a decode one"
            )
        return self._open(self.roster.prefillers)

    def decoders(self) -> Rows:
        """Returns the rows of decode instances: some where `prefillers` has a prefill one."""
        return self._open(self.roster.rows_of.get(Role.DECODE, _NO_ROWS))

    def queued_s(self) -> Seconds:
        """Returns what each row has to do before it can start on a request.

        On a colocated instance every sequence that decodes adds a token to the steps of a prefill.
        """
        decoding = self.sequences * self.roster.is_colocated
        work = self.queued._replace(new_tokens=self.queued.new_tokens + decoding)
        if len(self.costs) == 1:
            return self.costs[0][0].seconds_each(work)
        seconds = np.zeros(len(self.roster))
        for cost, rows in self.costs:
            seconds[rows] = cost.seconds_each(work.at(rows))
        return seconds

    def prefill_s(self, num_tokens: int) -> Seconds:
        """Returns what a prompt of `num_tokens` takes at each row: `exec(x, y)` of the paper."""
        cached = self.prefill_cached_tokens
        if len(self.costs) == 1:
            return self.costs[0][0].prefill_s_each(num_tokens, cached)
        seconds = np.zeros(len(self.roster))
        for cost, rows in self.costs:
            seconds[rows] = cost.prefill_s_each(num_tokens, cached[rows])
        return seconds

    def _open(self, rows: Rows) -> Rows:
        return rows if self.is_open is None else rows[self.is_open[rows]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceLoad:
    """One row of a view."""

    instance: InstanceId
    role: Role
    cost: PrefillCost
    queued: PrefillWork = field(default_factory=PrefillWork)
    sequences: int = 0
    indexed_blocks: int = 0
    prefill_cached_tokens: int = 0
    decode_cached_tokens: int = 0


def view_of(
    loads: Iterable[InstanceLoad], *, first_block: bytes, turn: int = 0, min_gain: float = 0.0
) -> ClusterView:
    """Returns the view that has these rows, in whatever order they are given."""
    by_name = sorted(loads, key=lambda load: load.instance)
    roster = make_roster(Place(instance=load.instance, role=load.role) for load in by_name)
    by_cost: dict[PrefillCost, list[int]] = {}
    for row, load in enumerate(by_name):
        by_cost.setdefault(load.cost, []).append(row)

    def column(of: str) -> Column:
        return np.array([getattr(load, of) for load in by_name], np.int64)

    return ClusterView(
        roster=roster,
        costs=[(cost, np.array(rows, np.intp)) for cost, rows in by_cost.items()],
        queued=to_columns([load.queued for load in by_name]),
        sequences=column("sequences"),
        indexed_blocks=column("indexed_blocks"),
        prefill_cached_tokens=column("prefill_cached_tokens"),
        decode_cached_tokens=column("decode_cached_tokens"),
        first_block=first_block,
        turn=turn,
        min_gain=min_gain,
    )


def to_columns(works: Sequence[PrefillWork]) -> WorkColumns:
    """Returns columns with these rows."""
    return WorkColumns(
        np.array([work.prompts for work in works], np.int64),
        np.array([work.new_tokens for work in works], np.int64),
        np.array([work.token_pairs for work in works], np.int64),
    )
