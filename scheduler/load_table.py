"""How busy each instance is: what we gave it, and what others did.

A heartbeat is up to a period old. So what we gave an instance is counted here as it comes and
goes, and a heartbeat only adds what exceeds it: work of clients that stream directly, or that
came through another scheduler.

Columns are kept from request to request; only rows of instances that something happened to are
worked out again.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memserve_jax.core.cost_model import PrefillCost, PrefillWork, WorkColumns
from memserve_jax.core.types import InstanceId
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.flights import Flights
from scheduler.roster import Column, Roster, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """What a heartbeat reported beyond what we had given."""

    prefill_tokens: int = 0
    sequences: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadColumns:
    """The load of each row of a roster."""

    queued: WorkColumns  # prefills that are not finished
    sequences: Column  # requests there, or on their way there
    prefill_tokens_per_s: npt.NDArray[np.float64]  # as last reported; 0: not yet


class LoadTable:
    """The load of every instance. Lives in the asyncio loop."""

    def __init__(self, flights: Flights):
        """Starts without heartbeats, above the requests of `flights`."""
        self._flights = flights
        self._excess: dict[InstanceId, tuple[Excess, Excess]] = {}  # the last two heartbeats'
        self._rates: dict[InstanceId, float] = {}  # tokens/s
        self._heard: set[InstanceId] = set()  # since the columns were brought up to date
        self._roster: Roster | None = None
        self._columns: LoadColumns | None = None

    def heard(self, status: pb.InstanceStatus) -> None:
        """Notes a heartbeat."""
        instance = InstanceId(status.instance)
        given = self._flights.queued_at(instance).new_tokens
        known = self._flights.sequences_at(instance)
        now = Excess(
            prefill_tokens=max(0, status.queued_prefill_tokens - given),
            sequences=max(0, status.running + status.waiting - known),
        )
        _, before = self._excess.get(instance, (Excess(), Excess()))
        self._excess[instance] = before, now
        self._rates[instance] = status.prefill_tokens_per_s
        self._heard.add(instance)

    def left(self, instance: InstanceId) -> None:
        """Forgets an instance."""
        self._excess.pop(instance, None)
        self._rates.pop(instance, None)

    def queued_at(self, instance: InstanceId) -> PrefillWork:
        """Returns the prefills that `instance` has not finished."""
        tokens = self._lasting(instance).prefill_tokens
        return self._flights.queued_at(instance) + PrefillWork(new_tokens=tokens)

    def sequences_at(self, instance: InstanceId) -> int:
        """Returns the requests that `instance` has, or that are on their way to it."""
        return self._flights.sequences_at(instance) + self._lasting(instance).sequences

    def columns(self, roster: Roster) -> LoadColumns:
        """Returns the load of each row. Only to be read, and only until something happens."""
        columns, changed = self._columns, self._flights.changed
        if columns is None or roster is not self._roster:
            columns = _empty_columns(roster)
            for row, place in enumerate(roster.places):
                columns.prefill_tokens_per_s[row] = place.prefill_tokens_per_s
                self._update(columns, row, place.instance)
            self._roster, self._columns = roster, columns
        else:
            for instance in changed | self._heard:
                row = roster.row_of.get(instance)
                if row is not None:
                    self._update(columns, row, instance)
        changed.clear()
        self._heard.clear()
        return columns

    def _update(self, columns: LoadColumns, row: int, instance: InstanceId) -> None:
        work = self.queued_at(instance)
        columns.queued.prompts[row] = work.prompts
        columns.queued.new_tokens[row] = work.new_tokens
        columns.queued.token_pairs[row] = work.token_pairs
        columns.sequences[row] = self.sequences_at(instance)
        rate = self._rates.get(instance)
        if rate is not None:
            columns.prefill_tokens_per_s[row] = rate

    def _lasting(self, instance: InstanceId) -> Excess:
        """Returns what two heartbeats in a row reported.

        A request that ended while a heartbeat was on its way shows up in that one alone.
        """
        before, now = self._excess.get(instance, (Excess(), Excess()))
        return Excess(
            prefill_tokens=min(before.prefill_tokens, now.prefill_tokens),
            sequences=min(before.sequences, now.sequences),
        )


class CostTable:
    """What a prefill costs at each row of a roster. Lives in the asyncio loop.

    Instances of one role and tensor parallelism count as equally fast, at the best rate that any
    of them has reported: measured rates differ more by the prompts that came than by the
    hardware, and the noise would send all cold traffic to whoever looks fastest.
    """

    def __init__(self, default: PrefillCost):
        """Makes a table; `default` is the model's cost: fitted, or linear until it is."""
        self._default = default
        self._made: dict[tuple[float, int], PrefillCost] = {}

    def costs(
        self, roster: Roster, tokens_per_s: npt.NDArray[np.float64]
    ) -> list[tuple[PrefillCost, Rows]]:
        """Returns the cost of each group of rows; `tokens_per_s` is what each row reported."""
        made: dict[tuple[float, int], PrefillCost] = {}
        costs: list[tuple[PrefillCost, Rows]] = []
        for place, rows in roster.groups:
            key = float(tokens_per_s[rows].max()), place.tensor_parallelism or 1
            cost = self._made.get(key)
            if cost is None:
                cost = self._default.on(tokens_per_s=key[0], tp=key[1])
            made[key] = cost
            costs.append((cost, rows))
        self._made = made
        return costs


def _empty_columns(roster: Roster) -> LoadColumns:
    prompts, tokens, pairs, sequences = np.zeros((4, len(roster)), np.int64)
    return LoadColumns(
        queued=WorkColumns(prompts, tokens, pairs),
        sequences=sequences,
        prefill_tokens_per_s=np.zeros(len(roster)),
    )
