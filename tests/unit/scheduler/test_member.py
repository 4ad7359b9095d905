"""A member tells when its state or what it can hold is another, and only then."""

import pytest

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.member import Capacity, Member, traits_of
from tests.helpers.fake_instance import make_status


def tiers(num_blocks: int) -> list[pb.TierStatus]:
    return [pb.TierStatus(tier="hbm", num_blocks=num_blocks), pb.TierStatus(tier="host")]


def test_only_changes_of_state_or_capacity_are_told():
    told = []
    status = make_status(tiers=tiers(10))
    member = Member(
        traits=traits_of(status),
        status=status,
        heard_s=0.0,
        on_change=lambda: told.append(member.state),
    )
    member.status = make_status(tiers=tiers(10), running=3)
    member.is_suspect = False
    assert told == [] and member.is_routable
    member.is_suspect = True
    member.is_suspect = False
    member.is_draining = True
    member.is_draining = False
    member.status = make_status(tiers=tiers(10), state="draining")
    assert told == ["down", "serving", "draining", "serving", "draining"]
    member.status = make_status(tiers=tiers(9), state="draining")
    assert len(told) == 6 and not member.is_routable


def test_capacity_is_the_least_of_what_was_said():
    statuses = [
        make_status(tiers=tiers(10), max_context_tokens=500),
        make_status(tiers=tiers(8)),
        make_status(max_context_tokens=400),
    ]
    each = [Member(traits=traits_of(s), status=s, heard_s=0.0).capacity for s in statuses]
    assert each == [Capacity(500, 160), Capacity(None, 128), Capacity(400, None)]
    assert Capacity.least_of(each) == Capacity(400, 128)
    assert Capacity.least_of([]) == Capacity(None, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instance", "no spaces"),
        ("target", "host"),
        ("epoch", 0),
        ("role", "chef"),
        ("caching", "pd_basic"),
    ],
)
def test_impossible_traits_are_refused(field, value):
    status = make_status()
    setattr(status, field, value)
    with pytest.raises(InvalidRequestError, match=f"status.{field}: got "):
        traits_of(status)
