"""The rows that columns are aligned to: by name, whatever the order they came in."""

import random

import hypothesis.strategies as st
from hypothesis import given

from memserve_jax.core.types import InstanceId, Role
from scheduler.roster import Place, hash_of, make_roster

places = st.lists(
    st.builds(
        Place,
        instance=st.uuids().map(str),
        role=st.sampled_from(Role),
        tensor_parallelism=st.integers(1, 2),
    ),
    max_size=8,
    unique_by=lambda place: place.instance,
)


@given(places, st.randoms())
def test_rows_are_in_the_order_of_names(given_places, rng: random.Random):
    roster = make_roster(rng.sample(given_places, len(given_places)))
    assert list(roster.places) == sorted(given_places, key=lambda place: place.instance)
    assert [roster.row_of[place.instance] for place in roster.places] == list(range(len(roster)))
    assert roster.hashes.tolist() == [hash_of(place.instance.encode()) for place in roster.places]
    for role in Role:
        named = [place.instance for place in roster.places if place.role is role]
        assert [roster.instance(row) for row in roster.rows_of.get(role, ())] == named
    grouped = sorted(row for _, rows in roster.groups for row in rows.tolist())
    assert grouped == list(range(len(roster)))
    for first, rows in roster.groups:
        alike = {(roster.places[row].role, roster.places[row].tensor_parallelism) for row in rows}
        assert alike == {(first.role, first.tensor_parallelism)}


@given(places)
def test_a_request_starts_where_it_can_also_end(given_places):
    roster = make_roster(given_places)
    roles = {place.role for place in given_places}
    starts = {roster.places[row].role for row in roster.prefillers}
    wanted = {Role.COLOCATED} & roles
    if {Role.PREFILL, Role.DECODE} <= roles:
        wanted |= {Role.PREFILL}
    assert starts == wanted and roster.can_serve == bool(wanted)


def test_who_is_avoided_is_left_out_unless_nobody_else_has_the_role():
    p0, p1, d0 = (
        Place(instance=InstanceId(name), role=role)
        for name, role in (("p0", Role.PREFILL), ("p1", Role.PREFILL), ("d0", Role.DECODE))
    )
    roster = make_roster([p0, p1, d0])
    is_open = roster.open_rows(frozenset({p0.instance, d0.instance, InstanceId("gone")}))
    assert [roster.places[row] for row in is_open.nonzero()[0]] == [d0, p1]


@given(places, st.data())
def test_open_rows_are_those_of_nobody_avoided_or_of_a_whole_role(given_places, data):
    roster = make_roster(given_places)
    names = [place.instance for place in roster.places]
    avoided = data.draw(st.frozensets(st.sampled_from(names)) if names else st.just(frozenset()))
    is_open = roster.open_rows(avoided)
    for role in {place.role for place in roster.places}:
        of_role = [name for name in names if roster.places[roster.row_of[name]].role is role]
        left = [name for name in of_role if name not in avoided] or of_role
        assert [name for name in of_role if is_open[roster.row_of[name]]] == left
