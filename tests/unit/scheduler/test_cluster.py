"""Who is there: epochs, time-outs, drain, and what an instance must have in common."""

import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import InvalidRequestError, RefusedError, UnknownInstanceError
from memserve_jax.core.types import Role
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.cluster import Cluster, Departure, as_status
from tests.helpers.fake_instance import make_status


class Watched:
    """A cluster on a manual clock, with a log of departures."""

    def __init__(self):
        self.clock = ManualClock(50.0)
        self.left: list[tuple[str, int, Departure]] = []
        self.cluster = Cluster(model="tiny", clock=self.clock, timeout_s=5.0, on_left=self._note)

    def _note(self, traits, departure):
        self.left.append((traits.instance, traits.epoch, departure))

    def names(self):
        return [member.traits.instance for member in self.cluster.members()]


@pytest.fixture
def watched():
    watched = Watched()
    yield watched
    watched.cluster.check()


def test_register_heartbeat_deregister(watched):
    cluster = watched.cluster
    cluster.register(make_status("p0", role="prefill", epoch=7))
    assert not cluster.can_serve
    cluster.register(make_status("d0", role="decode", epoch=8))
    assert cluster.can_serve
    assert cluster.heartbeat(make_status("p0", role="prefill", epoch=7)) == ["d0@8", "p0@7"]
    cluster.deregister("p0", 6)
    assert watched.names() == ["d0", "p0"]
    cluster.deregister("p0", 7)
    assert watched.names() == ["d0"] and not cluster.can_serve
    assert watched.left == [("p0", 7, Departure.LEFT)]


def test_silence_ends_a_life_and_only_that_one(watched):
    cluster = watched.cluster
    cluster.register(make_status("c0"))
    cluster.register(make_status("c1"))
    watched.clock.advance(4.0)
    cluster.heartbeat(make_status("c1"))
    watched.clock.advance(2.0)
    cluster.expire()
    assert watched.names() == ["c1"]
    assert watched.left == [("c0", 1, Departure.SILENT)]
    with pytest.raises(UnknownInstanceError, match="'c0', live are: c1"):
        cluster.heartbeat(make_status("c0"))
    cluster.register(make_status("c0"))
    assert watched.names() == ["c0", "c1"]


def test_who_lives_is_known_once_all_have_had_time_to_report(watched):
    assert not watched.cluster.is_complete
    watched.clock.advance(4.9)
    assert not watched.cluster.is_complete
    watched.clock.advance(0.2)
    assert watched.cluster.is_complete


def test_time_in_which_nobody_could_be_heard_is_not_silence(watched):
    watched.cluster.register(make_status("c0"))
    watched.clock.advance(60.0)
    watched.cluster.forgive(58.0)
    watched.cluster.expire()
    assert watched.names() == ["c0"]
    watched.clock.advance(4.0)
    watched.cluster.expire()
    assert watched.names() == []


def test_a_new_epoch_replaces_an_old_one_is_refused(watched):
    cluster = watched.cluster
    cluster.register(make_status("c0", epoch=5))
    cluster.register(make_status("c0", epoch=6))
    assert watched.left == [("c0", 5, Departure.RESTARTED)]
    with pytest.raises(RefusedError, match="live with epoch 6, got the older 5"):
        cluster.register(make_status("c0", epoch=5))
    with pytest.raises(UnknownInstanceError, match="registered with epoch 6, got 5"):
        cluster.heartbeat(make_status("c0", epoch=5))
    assert watched.names() == ["c0"]


def test_registering_again_in_the_same_life_changes_nothing(watched):
    watched.cluster.register(make_status("c0"))
    watched.cluster.member("c0").is_draining = True
    watched.cluster.register(make_status("c0", running=3))
    assert watched.left == []
    assert watched.cluster.member("c0").state == "draining"
    assert watched.cluster.member("c0").status.running == 3


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("instance", "", "1 to 64"),
        ("instance", "a b", "1 to 64"),
        ("target", "nowhere", "HOST:PORT"),
        ("epoch", 0, "> 0"),
        ("role", "boss", "prefill, decode, colocated"),
        ("caching", "sometimes", "pd_caching_3"),
        ("caching", "pd_basic", "for role colocated one of off, on"),
        ("block_size_tokens", 0, "1 to 256"),
        ("block_size_tokens", 257, "1 to 256"),
    ],
)
def test_impossible_fields_are_named(watched, field, value, allowed):
    status = make_status("c0")
    setattr(status, field, value)
    with pytest.raises(InvalidRequestError, match=rf"status\.{field}: got .*{allowed}"):
        watched.cluster.register(status)
    assert watched.names() == []


@pytest.mark.parametrize(
    ("field", "value"), [("block_size_tokens", 32), ("model", "other"), ("caching", "off")]
)
def test_instances_must_agree(watched, field, value):
    watched.cluster.register(make_status("c0"))
    status = make_status("c1")
    setattr(status, field, value)
    others = "(c0|this scheduler)"
    with pytest.raises(RefusedError, match=rf"status\.{field}: c1 has .*, as {others} has"):
        watched.cluster.register(status)
    assert watched.names() == ["c0"]


def test_a_lone_instance_may_come_back_otherwise(watched):
    watched.cluster.register(make_status("c0", epoch=1, block_size_tokens=16))
    watched.cluster.register(make_status("c0", epoch=2, block_size_tokens=32))
    assert watched.cluster.block_size_tokens == 32


def test_what_may_be_routed_to(watched):
    cluster = watched.cluster
    cluster.register(make_status("c0"))
    member = cluster.member("c0")
    for state, routable in (("draining", False), ("down", False), ("serving", True)):
        cluster.heartbeat(make_status("c0", state=state))
        assert (member.is_routable, cluster.can_serve) == (routable, routable)
    member.is_suspect = True
    assert as_status(member).state == "down" and not cluster.can_serve
    cluster.heartbeat(make_status("c0"))
    assert member.is_routable


def test_the_last_of_a_role_is_not_spare(watched):
    cluster = watched.cluster
    for name, role in (("p0", "prefill"), ("p1", "prefill"), ("d0", "decode")):
        cluster.register(make_status(name, role=role))
    cluster.refuse_unless_spare("p0")
    with pytest.raises(RefusedError, match="d0 is the last decode instance"):
        cluster.refuse_unless_spare("d0")
    cluster.member("p1").is_draining = True
    with pytest.raises(RefusedError, match="p0 is the last prefill instance"):
        cluster.refuse_unless_spare("p0")
    with pytest.raises(UnknownInstanceError):
        cluster.refuse_unless_spare("x")
    assert cluster.member("p0").traits.role is Role.PREFILL


def test_limits_are_those_of_the_smallest(watched):
    cluster = watched.cluster
    assert cluster.limits(4096).max_kv_tokens is None
    tiers = [pb.TierStatus(tier="hbm", num_blocks=8), pb.TierStatus(tier="host", num_blocks=2)]
    cluster.register(make_status("c0", max_context_tokens=2048, tiers=tiers))
    cluster.register(make_status("c1", tiers=[pb.TierStatus(tier="hbm", num_blocks=9)]))
    limits = cluster.limits(4096)
    assert (limits.max_context_tokens, limits.max_kv_tokens) == (2048, 128)
