"""Global trees seen along a roster: from slots of a tree to rows."""

from dataclasses import dataclass

import numpy as np

from memserve_jax.core.types import Role
from scheduler.prompt_trees import Names, PromptTrees
from scheduler.roster import Column, Roster, Rows


@dataclass(frozen=True, slots=True, eq=False)
class _Slots:
    """Rows of one role that its tree has a slot for, and those slots; made at `num_changes`."""

    rows: Rows
    slots: Rows
    num_changes: int


class TreeRows:
    """Columns over the rows of a roster, from the trees. Lives in the asyncio loop."""

    def __init__(self, trees: PromptTrees):
        self._trees = trees
        self._roster: Roster | None = None
        self._slots: dict[Role, _Slots] = {}

    def held_blocks(self, roster: Roster, names: Names, now_s: float) -> Column:
        """Returns how many leading blocks of `names` each row holds, by the tree of its role."""
        column = np.zeros(len(roster), np.int64)
        for role in roster.rows_of:
            tree = self._trees[role]
            depths = tree.depths(names, now_s)  # first: hopes may end by it
            at = self._of(roster, role)
            column[at.rows] = depths[at.slots]
        return column

    def indexed_blocks(self, roster: Roster) -> Column:
        """Returns how many blocks each row is believed to hold in all."""
        column = np.zeros(len(roster), np.int64)
        for role in roster.rows_of:
            at = self._of(roster, role)
            column[at.rows] = self._trees[role].blocks_by_slot[at.slots]
        return column

    def _of(self, roster: Roster, role: Role) -> _Slots:
        if roster is not self._roster:
            self._roster, self._slots = roster, {}
        tree, at = self._trees[role], self._slots.get(role)
        if at is None or at.num_changes != tree.num_slot_changes:
            slots = [tree.slots.get(roster.instance(row)) for row in roster.rows_of[role].tolist()]
            known = np.array([slot is not None for slot in slots], bool)
            at = self._slots[role] = _Slots(
                rows=roster.rows_of[role][known],
                slots=np.array([slot for slot in slots if slot is not None], np.intp),
                num_changes=tree.num_slot_changes,
            )
        return at
