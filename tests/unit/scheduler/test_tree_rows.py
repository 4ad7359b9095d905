"""Trees along a roster: the same as asking for each instance."""

import hypothesis.strategies as st
from hypothesis import given

from memserve_jax.core.types import InstanceId, Role
from scheduler.prompt_trees import PromptTrees
from scheduler.roster import Place, make_roster
from scheduler.tree_rows import TreeRows

NAMES = [bytes([number]) * 16 for number in range(6)]
ROLES = {
    InstanceId("c0"): Role.COLOCATED,
    InstanceId("c1"): Role.COLOCATED,
    InstanceId("d0"): Role.DECODE,
    InstanceId("p0"): Role.PREFILL,
}

moves = st.lists(
    st.tuples(
        st.sampled_from(["confirm", "forget", "leave", "join"]),
        st.sampled_from(sorted(ROLES)),
        st.integers(0, 6),
    ),
    max_size=25,
)


@given(moves)
def test_columns_are_what_the_trees_say(steps):
    trees = PromptTrees(ttl_s=10.0, max_blocks=100)
    rows, here = TreeRows(trees), set(ROLES)
    roster = make_roster(Place(instance=name, role=ROLES[name]) for name in here)
    for what, name, num_blocks in steps:
        if what == "confirm":
            trees[ROLES[name]].confirm(name, NAMES[:num_blocks], 0.0)
        elif what == "forget":
            trees.forget(name)
        else:
            here = here - {name} if what == "leave" else here | {name}
            roster = make_roster(Place(instance=each, role=ROLES[each]) for each in here)
        held = rows.held_blocks(roster, NAMES, 1.0)
        indexed = rows.indexed_blocks(roster)
        for row, place in enumerate(roster.places):
            tree = trees[place.role]
            assert held[row] == tree.match(NAMES, 1.0).get(place.instance, 0)
            assert indexed[row] == tree.blocks_of(place.instance)


def test_what_has_expired_is_not_counted():
    trees = PromptTrees(ttl_s=10.0, max_blocks=100)
    trees[Role.COLOCATED].confirm(InstanceId("c0"), NAMES, 0.0)
    roster = make_roster([Place(instance=InstanceId("c0"), role=Role.COLOCATED)])
    rows = TreeRows(trees)
    assert rows.held_blocks(roster, NAMES, 9.0).tolist() == [6]
    assert rows.held_blocks(roster, NAMES, 11.0).tolist() == [0]
    assert rows.indexed_blocks(roster).tolist() == [0]
