"""The measurements, without a process around them."""

import itertools

import pytest

from memserve_jax.bench.transfer_case import SHAPES, Case, Ends
from memserve_jax.bench.transfer_process import TransferProcess
from memserve_jax.core.types import InstanceId, Tier

ENDS = Ends(InstanceId("p0"), InstanceId("d0"))


@pytest.fixture
def process():
    process = TransferProcess()
    options = {"hbm_blocks": 16, "host_blocks": 16}
    for name, devices in ((ENDS.source, (0,)), (ENDS.target, (1,))):
        process.make_pool(name, SHAPES[0].layout, devices, ("device_put",), dict(options))
    yield process
    for name in (ENDS.source, ENDS.target):
        process.drop_pool(name)
    process.host.close()


def test_puts_are_timed_and_counted(process):
    process.expect(ENDS.target, ["a", "b"], 4)
    at = process.endpoint(ENDS.target)
    assert process.put_s(ENDS, at, ["a", "b"], 4) > 0
    process.forget(ENDS.target, ["a", "b"])
    assert process.counters(ENDS.source)["device_put"][0] == 2


@pytest.mark.parametrize("source", [Tier.HBM, Tier.HOST])
@pytest.mark.parametrize("target", [Tier.HBM, Tier.HOST])
def test_whole_transfers_go_between_all_tiers(process, source, target):
    case = Case(
        transport="device_put",
        shape=SHAPES[0],
        num_blocks=4,
        source=source,
        target=target,
        is_whole=True,
    )
    assert process.transfer_s(ENDS, case, 2) > 0
    assert process.check(ENDS.target) == 0


def test_scattered_blocks_lie_apart(process):
    case = Case(
        transport="device_put", shape=SHAPES[0], num_blocks=4, is_whole=True, is_scattered=True
    )
    assert process.transfer_s(ENDS, case, 1) > 0
    (lease,) = process._leases.values()
    places = sorted(lease.block_ids)
    assert all(later - sooner > 1 for sooner, later in itertools.pairwise(places))


def test_bounds_are_timed(process):
    process.connect_raw(process.listen_raw())
    assert process.copy_s(1 << 16, 2) > 0 and process.socket_s(1 << 16, 2) > 0
    process._socket.close()
    process._sink.close()
