"""Who can start a request: a colocated instance, or a pair of prefill and decode."""

import pytest

from memserve_jax.core.cost_model import CostModel, PrefillWork
from memserve_jax.core.errors import NoInstanceError
from memserve_jax.core.types import InstanceId, Role
from scheduler.view import ClusterView, InstanceLoad, view_of

COST = CostModel(fixed_s=0.0, s_per_token=1.0, s_per_token_pair=0.0)
SLOW = CostModel(fixed_s=1.0, s_per_token=10.0, s_per_token_pair=0.0)


def view_with(*roles: Role) -> ClusterView:
    loads = [
        InstanceLoad(instance=InstanceId(f"{index}{role.value}"), role=role, cost=COST)
        for index, role in enumerate(roles)
    ]
    return view_of(loads, first_block=b"k")


def names_of(view: ClusterView, rows) -> list[str]:
    return [view.roster.instance(row) for row in rows]


@pytest.mark.parametrize(
    ("roles", "names"),
    [
        ([Role.COLOCATED], ["0colocated"]),
        ([Role.PREFILL, Role.DECODE], ["0prefill"]),
        ([Role.PREFILL, Role.DECODE, Role.COLOCATED], ["0prefill", "2colocated"]),
        ([Role.PREFILL, Role.COLOCATED], ["1colocated"]),
        ([Role.DECODE, Role.COLOCATED], ["1colocated"]),
    ],
)
def test_prefillers(roles, names):
    view = view_with(*roles)
    assert names_of(view, view.prefillers()) == names


@pytest.mark.parametrize("roles", [[], [Role.PREFILL], [Role.DECODE], [Role.DECODE] * 2])
def test_half_a_cluster_serves_nobody(roles):
    with pytest.raises(NoInstanceError, match="needed: a colocated one, or"):
        view_with(*roles).prefillers()


def test_a_colocated_instance_decodes_for_nobody_else():
    view = view_with(Role.PREFILL, Role.DECODE, Role.COLOCATED)
    assert names_of(view, view.decoders()) == ["1decode"]


@pytest.mark.parametrize("costs", [(COST, COST, COST), (COST, SLOW, COST)])
def test_seconds_are_those_of_each_rows_own_cost(costs):
    roles = (Role.COLOCATED, Role.PREFILL, Role.DECODE)
    loads = [
        InstanceLoad(
            instance=InstanceId(f"i{index}"),
            role=role,
            cost=cost,
            queued=PrefillWork.of(100, 16 * index),
            sequences=index + 2,
            prefill_cached_tokens=16 * index,
        )
        for index, (role, cost) in enumerate(zip(roles, costs, strict=True))
    ]
    view = view_of(reversed(loads), first_block=b"k")
    decoding = [PrefillWork(new_tokens=2), PrefillWork(), PrefillWork()]  # of the colocated one
    assert view.queued_s().tolist() == [
        load.cost.seconds(load.queued + more) for load, more in zip(loads, decoding, strict=True)
    ]
    assert view.prefill_s(50).tolist() == [
        load.cost.prefill_s(50, load.prefill_cached_tokens) for load in loads
    ]
