"""Routes that only the cluster can have written."""

import pytest

from memserve_jax.core.credentials import PLAIN, Credentials, credentials_of
from memserve_jax.core.errors import RefusedError
from memserve_jax.core.security_section import SecuritySection
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.route_seal import check_route, sealed_route
from tests.helpers.certificates import write_keys

ROUTE = {
    "prefill_instance": "p0",
    "prefill_target": "127.0.0.1:1",
    "decode_instance": "d0",
    "decode_target": "127.0.0.1:2",
    "fetch_instance": "p1",
    "fetch_target": "127.0.0.1:3",
    "reason": "cheapest",
}


def of(tmp_path, key: str) -> Credentials:
    path = write_keys(tmp_path / key[0], key * 16)
    return credentials_of(SecuritySection(cluster_key=path))


def test_a_route_holds_as_it_was_given(tmp_path):
    member, stranger = of(tmp_path, "m"), of(tmp_path, "s")
    route = sealed_route(pb.RouteInfo(**ROUTE), member)
    check_route(pb.RouteInfo.FromString(route.SerializeToString()), member)
    with pytest.raises(RefusedError, match=r"route.seal: allowed: a route as the scheduler gave"):
        check_route(route, stranger)
    for field in ROUTE:
        changed = pb.RouteInfo()
        changed.CopyFrom(route)
        setattr(changed, field, "elsewhere:1")
        if field == "reason":
            check_route(changed, member)
            continue
        with pytest.raises(RefusedError):
            check_route(changed, member)


def test_only_addresses_need_a_seal(tmp_path):
    member = of(tmp_path, "m")
    check_route(pb.RouteInfo(), member)
    check_route(pb.RouteInfo(decode_instance="c0"), member)
    for field in ("prefill_target", "fetch_target"):
        with pytest.raises(RefusedError):
            check_route(pb.RouteInfo(**{field: "elsewhere:1"}), member)


def test_without_a_key_there_is_no_seal():
    route = sealed_route(pb.RouteInfo(**ROUTE), PLAIN)
    assert route == pb.RouteInfo(**ROUTE)
    check_route(route, PLAIN)
