"""LocalFabric and DevicePutTransport on their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import Tier
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.transport import Destination, Endpoint
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding
from tests.helpers.ports import TICKET, Landed

WAIT_S = 60.0
LAYOUT = KVLayout(num_layers=1, num_kv_heads=2, block_size_tokens=2, head_dim=1, dtype="float32")
PART = Part.whole(LAYOUT, 3)


def sharding_of(*devices):
    return packed_sharding(make_mesh([jax.devices()[i] for i in devices], len(devices)), 2)


def packed():
    kv = np.arange(4 * 2 * 2 * 2, dtype=np.float32).reshape(4, 1, 2, 2, 2, 1)
    return jax.device_put(kv, sharding_of(0))


@pytest.fixture
def fabric():
    return LocalFabric()


@pytest.fixture
def make(fabric):
    transports = []

    def make_one():
        transports.append(DevicePutTransport(fabric, ManualClock()))
        return transports[-1]

    yield make_one
    for transport in transports:
        transport.close()


def to(instance, fabric, tier=Tier.HBM):
    end = Endpoint("device_put", fabric.address)
    return Destination(instance=instance, endpoint=end, tier=tier, ticket=TICKET)


@pytest.mark.parametrize("devices", [(0,), (1,), (2, 3)])  # the sender's own device, too
@pytest.mark.parametrize("source", [np.asarray, jnp.asarray])
def test_bytes_are_delivered_before_the_future_is_done(fabric, make, devices, source):
    landed = Landed("d0", LAYOUT, sharding_of(*devices))
    landed.expect("t", 3)
    transport, receiver = make(), make()
    receiver.receive(landed.port)
    payload = source(packed())
    assert transport.send("t", PART, payload, to("d0", fabric)).result(WAIT_S) is None
    ((transfer, part, arrived),) = landed.parts
    assert (transfer, part) == ("t", PART)
    assert arrived.sharding == sharding_of(*devices)
    np.testing.assert_array_equal(np.asarray(arrived), packed())
    counters = transport.counters
    assert (counters.num_calls, counters.num_bytes) == (1, payload.nbytes * 3 // 4)


def test_what_is_for_host_arrives_in_host_memory(fabric, make):
    landed = Landed("d0", LAYOUT, sharding_of(1))
    landed.expect("t", 3, tier=Tier.HOST)
    transport, receiver = make(), make()
    receiver.receive(landed.port)
    transport.send("t", PART, packed(), to("d0", fabric, Tier.HOST)).result(WAIT_S)
    ((_, _, arrived),) = landed.parts
    assert isinstance(arrived, np.ndarray)
    np.testing.assert_array_equal(arrived, packed())


def test_a_failure_of_one_copy_leaves_the_next_alone(fabric, make):
    landed = Landed("d0", LAYOUT, sharding_of(1))
    landed.expect("t", 3)
    transport, receiver = make(), make()
    receiver.receive(landed.port)
    for instance, transfer, message in [
        ("d9", "t", "d9 is not in this process"),
        ("d0", "u", "expects no bytes"),
    ]:
        with pytest.raises(TransferFailedError, match=message):
            transport.send(transfer, PART, packed(), to(instance, fabric)).result(WAIT_S)
    transport.send("t", PART, packed(), to("d0", fabric)).result(WAIT_S)
    with pytest.raises(TransferFailedError, match="admitted before"):
        transport.send("t", PART, packed(), to("d0", fabric)).result(WAIT_S)
    landed.expect("v", 3)
    receiver.close()
    with pytest.raises(TransferFailedError):
        transport.send("v", PART, packed(), to("d0", fabric)).result(WAIT_S)


def test_the_ends_decide_whether_it_can_be_done(fabric, make):
    transport = make()
    assert transport.endpoint is None  # nobody listens yet
    transport.receive(Landed("p0", LAYOUT, sharding_of(0)).port)
    here, elsewhere = transport.endpoint, Endpoint("device_put", LocalFabric().address)
    for source in (Tier.HBM, Tier.HOST):
        for target in (Tier.HBM, Tier.HOST):
            assert transport.refuses(here, source, target) is None
    assert transport.refuses(elsewhere, Tier.HBM, Tier.HBM) == "it is in another process"


def test_a_later_life_stays_when_the_earlier_is_closed(fabric, make):
    first, second = make(), make()
    ports = [Landed("d0", LAYOUT, sharding_of(0)).port for _ in range(2)]
    first.receive(ports[0])
    second.receive(ports[1])
    first.close()
    assert fabric.find("d0") is ports[1]
    fabric.unregister("d0")
    fabric.unregister("d0")
    with pytest.raises(TransferFailedError):
        fabric.find("d0")
