"""Routes that only the cluster can have written.

A client that streams directly shows an instance the route that the scheduler gave it. It names
addresses that the instance then calls, with the cluster's key: nobody else may choose those.
"""

from memserve_jax.core.access import is_sealed, seal
from memserve_jax.core.credentials import Credentials
from memserve_jax.core.errors import RefusedError
from memserve_jax.core.key_file import KeyFile
from memserve_jax.proto import memserve_pb2 as pb


def sealed_route(route: pb.RouteInfo, credentials: Credentials) -> pb.RouteInfo:
    """Returns `route`, sealed in place where the cluster has a key."""
    cluster_key = _cluster_key(credentials)
    if cluster_key is not None:
        route.seal = seal(cluster_key, _words(route))
    return route


def check_route(route: pb.RouteInfo, credentials: Credentials) -> None:
    """Does nothing where `route` names no address, or the cluster has no key, or has sealed it.

    Raises:
      RefusedError: somebody else has written it.
    """
    cluster_key = _cluster_key(credentials)
    if cluster_key is None or not (route.prefill_target or route.fetch_target):
        return
    if not is_sealed(cluster_key, _words(route), route.seal):
        raise RefusedError("route.seal: allowed: a route as the scheduler gave it, by Route")


def _cluster_key(credentials: Credentials) -> KeyFile | None:
    return None if credentials.access is None else credentials.access.cluster_key


def _words(route: pb.RouteInfo) -> tuple[str, ...]:
    return (
        route.prefill_instance,
        route.prefill_target,
        route.decode_instance,
        route.decode_target,
        route.fetch_instance,
        route.fetch_target,
    )
