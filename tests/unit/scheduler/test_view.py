"""Who can start a request: a colocated instance, or a pair of prefill and decode."""

import pytest

from memserve_jax.core.cost_model import CostModel
from memserve_jax.core.errors import NoInstanceError
from memserve_jax.core.types import InstanceId, Role
from scheduler.view import ClusterView, InstanceLoad

COST = CostModel(fixed_s=0.0, s_per_token=1.0, s_per_token_pair=0.0)


def view_of(*roles: Role) -> ClusterView:
    loads = [
        InstanceLoad(instance=InstanceId(f"{role.value}{index}"), role=role, cost=COST)
        for index, role in enumerate(roles)
    ]
    return ClusterView(
        loads=tuple(loads), prefill_cached_tokens={}, decode_cached_tokens={}, first_block=b"k"
    )


@pytest.mark.parametrize(
    ("roles", "names"),
    [
        ([Role.COLOCATED], ["colocated0"]),
        ([Role.PREFILL, Role.DECODE], ["prefill0"]),
        ([Role.PREFILL, Role.DECODE, Role.COLOCATED], ["prefill0", "colocated2"]),
        ([Role.PREFILL, Role.COLOCATED], ["colocated1"]),
        ([Role.DECODE, Role.COLOCATED], ["colocated1"]),
    ],
)
def test_prefillers(roles, names):
    assert [load.instance for load in view_of(*roles).prefillers()] == names


@pytest.mark.parametrize("roles", [[], [Role.PREFILL], [Role.DECODE], [Role.DECODE] * 2])
def test_half_a_cluster_serves_nobody(roles):
    with pytest.raises(NoInstanceError, match="needed: a colocated one, or"):
        view_of(*roles).prefillers()


def test_a_colocated_instance_decodes_for_nobody_else():
    view = view_of(Role.PREFILL, Role.DECODE, Role.COLOCATED)
    assert [load.instance for load in view.decoders()] == ["decode1"]
