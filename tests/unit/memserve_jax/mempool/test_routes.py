"""Which transport is picked: the first that can, by where the ends are."""

import pytest

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import Tier
from memserve_jax.mempool.routes import Routes
from memserve_jax.mempool.transport import Endpoint, TransportCounters

NEAR, FAR = Endpoint("near", "here"), Endpoint("far", "there:1")


class Way:
    """A transport that can do some pairs of tiers."""

    def __init__(self, name, *pairs, endpoint=None):
        self.name, self.pairs, self.endpoint = name, pairs, endpoint
        self.counters = TransportCounters()

    def refuses(self, at, source, target):
        return None if (source, target) in self.pairs else f"not {source} to {target}"

    def receive(self, port):
        raise NotImplementedError

    def send(self, transfer_id, part, payload, to):
        raise NotImplementedError

    def close(self):
        raise NotImplementedError


HBM, HOST = Tier.HBM, Tier.HOST
near, far = Way("near", (HBM, HBM), endpoint=NEAR), Way("far", (HBM, HBM), (HBM, HOST))


def pick(routes, ends, source=HBM, target=HBM):
    return routes.pick("d0", ends, source=source, target=target, ticket=b"t")


@pytest.mark.parametrize(
    ("order", "ends", "target", "wanted"),
    [
        ([near, far], [FAR, NEAR], HBM, near),
        ([far, near], [FAR, NEAR], HBM, far),
        ([near, far], [FAR], HBM, far),
        ([near, far], [FAR, NEAR], HOST, far),
    ],
)
def test_the_first_that_can_is_picked(order, ends, target, wanted):
    transport, to = pick(Routes(order), ends, target=target)
    assert transport is wanted
    assert to.endpoint.transport == wanted.name
    assert (to.instance, to.tier, to.ticket) == ("d0", target, b"t")


def test_where_none_can_each_says_why():
    with pytest.raises(TransferFailedError) as raised:
        pick(Routes([near, far]), [NEAR], target=HOST)
    assert str(raised.value) == (
        "no way from hbm to host of d0: near: not hbm to host; far: d0 has no such end"
    )
    with pytest.raises(TransferFailedError, match="this pool has no transport"):
        pick(Routes([]), [NEAR])


def test_only_transports_that_can_be_reached_are_announced():
    assert Routes([near, far]).endpoints == (NEAR,)
