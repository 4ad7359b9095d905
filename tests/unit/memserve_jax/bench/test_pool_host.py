import pytest

from memserve_jax.bench.pool_host import PoolHost
from memserve_jax.core.clock import SystemClock
from memserve_jax.core.errors import InvalidRequestError, TransferFailedError
from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.control import FetchCall
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from tests.helpers.announcers import DirectAnnouncer
from tests.helpers.pools import TINY, cache, make_pool, read_kv

PATIENCE_S = 30.0
P0, D0 = InstanceId("p0"), InstanceId("d0")


@pytest.fixture
def host():
    host = PoolHost(lambda pool, arrival: arrival.lease.close())
    yield host
    host.close()


def add(host, fabric, name, device):
    transport = DevicePutTransport(fabric, SystemClock())
    pool = make_pool(
        name, devices=(device,), channel=host, transports=[transport], clock=SystemClock()
    )
    host.add(pool)
    return pool, transport


def test_pools_of_one_host_reach_each_other(host):
    fabric, prompt = LocalFabric(), [1, 2, 3, 4]
    source, first = add(host, fabric, "p0", 0)
    target, second = add(host, fabric, "d0", 1)

    def send():
        cache(source, prompt)
        with source.match_whole(prompt) as lease:
            return source.transfer_with_insert(prompt, lease, D0, timeout_s=PATIENCE_S)

    transfer = host.do(send)
    done = host.start(lambda: None)
    while not host.do(lambda: transfer.is_ended):
        done.result(PATIENCE_S)
    assert transfer.error is None
    host.settled(D0, timeout_s=PATIENCE_S).result(PATIENCE_S)
    with host.do(lambda: target.match_whole(prompt)) as lease:
        assert read_kv(target, lease).shape[0] == 2
    first.close()
    second.close()


def test_what_the_owner_raises_comes_back(host):
    with pytest.raises(ZeroDivisionError):
        host.do(lambda: 1 // 0)


def test_a_stranger_and_what_is_not_done_here_fail(host):
    gone = host.commit(D0, TransferId("t"), timeout_s=PATIENCE_S)
    with pytest.raises(TransferFailedError, match="d0 is not here"):
        gone.result(PATIENCE_S)
    call = FetchCall(
        requester=P0,
        requester_epoch=1,
        owner_epoch=None,
        token_ids=(1, 2),
        salt="",
        first_block=0,
        timeout_s=1.0,
    )
    with pytest.raises(TransferFailedError, match="nobody fetches here"):
        host.fetch(D0, call, timeout_s=1.0).result(PATIENCE_S)


def test_aborts_and_announcements_reach_the_pool(host):
    pool, transport = add(host, LocalFabric(), "d0", 0)
    assert host.abort(D0, TransferId("t"), "no reason").result(PATIENCE_S) is None
    announcement = DirectAnnouncer().made_up("t", TINY, b"")
    with pytest.raises(InvalidRequestError, match="transport: got 'jax_transfer', allowed: none"):
        host.announce(D0, announcement, timeout_s=1.0).result(PATIENCE_S)
    host.do(pool.check)
    transport.close()
