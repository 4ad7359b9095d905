"""From all that the scheduler knows to the view that one request is routed by."""

import numpy as np

from memserve_jax.core.block_keys import BlockKeys, block_keys
from memserve_jax.core.block_names import BlockNames
from memserve_jax.core.cost_model import PrefillCost
from memserve_jax.core.types import InstanceId, Request, Role
from scheduler.load_table import CostTable
from scheduler.prompt_trees import reusable_tokens
from scheduler.state import State
from scheduler.tree_rows import TreeRows
from scheduler.view import ClusterView


class Snapshots:
    """Makes views. Lives in the asyncio loop."""

    def __init__(self, state: State, cost: PrefillCost, *, min_gain: float = 0.0):
        """Makes views of `state`.

        Args:
          state: What is known.
          cost: Holds where no instance has reported its rate.
          min_gain: See `ClusterView`.
        """
        self._state = state
        self._min_gain = min_gain
        self._costs = CostTable(cost)
        self._trees = TreeRows(state.trees)

    def view(
        self,
        request: Request,
        keys: BlockKeys,
        names: BlockNames,
        *,
        avoid: frozenset[InstanceId] = frozenset(),
        turn: int = 0,
    ) -> ClusterView:
        """Returns the view for `request` as it is now; it holds until something happens.

        Args:
          request: What is to be prefilled.
          keys: Of its whole blocks.
          names: Of the same blocks, under its cache salt.
          avoid: Not to be chosen, unless nobody else has the role.
          turn: Requests routed before.
        """
        state, size = self._state, keys.block_size_tokens
        roster = state.cluster.roster
        num_tokens = len(request.prompt_token_ids)
        loads = state.loads.columns(roster)
        held = self._trees.held_blocks(roster, names, state.clock.now_s())
        decode_held = np.zeros(len(roster), np.int64)
        if Role.DECODE in roster.rows_of:
            rows = roster.rows_of[Role.DECODE]
            decode_held[rows] = held[rows] * size
            held[rows] = 0
        return ClusterView(
            roster=roster,
            costs=self._costs.costs(roster, loads.prefill_tokens_per_s),
            queued=loads.queued,
            sequences=loads.sequences,
            indexed_blocks=self._trees.indexed_blocks(roster),
            prefill_cached_tokens=reusable_tokens(num_tokens, held, size),
            decode_cached_tokens=decode_held,
            first_block=keys[0] if keys else block_keys(request.prompt_token_ids, num_tokens)[0],
            is_open=roster.open_rows(avoid) if avoid else None,
            turn=turn,
            min_gain=self._min_gain,
        )
