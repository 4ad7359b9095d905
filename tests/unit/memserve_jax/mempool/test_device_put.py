"""LocalFabric and DevicePutTransport on their own."""

import jax
import numpy as np
import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding

WAIT_S = 60.0


def sharding_of(*devices):
    return packed_sharding(make_mesh([jax.devices()[i] for i in devices], len(devices)), 2)


@pytest.fixture
def fabric():
    return LocalFabric()


@pytest.fixture
def transport(fabric):
    transport = DevicePutTransport(fabric, ManualClock())
    yield transport
    transport.close()


@pytest.mark.parametrize("devices", [(0,), (1,), (2, 3)])  # the sender's own device, too
def test_bytes_are_delivered_before_the_future_is_done(fabric, transport, devices):
    delivered = []
    fabric.register(
        "d0", sharding_of(*devices), lambda transfer, kv: delivered.append((transfer, kv))
    )
    kv = np.arange(4 * 2 * 2 * 2, dtype=np.float32).reshape(4, 1, 2, 2, 2, 1)
    packed = jax.device_put(kv, sharding_of(0))
    assert transport.send("t", packed, "d0", 3).result(WAIT_S) is None
    ((transfer, arrived),) = delivered
    assert transfer == "t"
    assert arrived.sharding == sharding_of(*devices)
    np.testing.assert_array_equal(np.asarray(arrived), kv)
    assert (transport.counters.num_calls, transport.counters.num_bytes) == (1, kv.nbytes * 3 // 4)


def test_a_failure_of_one_copy_leaves_the_next_alone(fabric, transport):
    packed = jax.device_put(np.zeros((1, 1, 2, 2, 2, 1), np.float32), sharding_of(0))
    fabric.register("d0", sharding_of(1), lambda transfer, kv: None)
    with pytest.raises(TransferFailedError, match="d9 is not in this process"):
        transport.send("t", packed, "d9", 1).result(WAIT_S)
    transport.send("u", packed, "d0", 1).result(WAIT_S)
    fabric.unregister("d0")
    fabric.unregister("d0")
    with pytest.raises(TransferFailedError):
        transport.send("v", packed, "d0", 1).result(WAIT_S)
