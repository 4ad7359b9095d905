"""KV arrives as it left, whatever the tensor parallelism of the two ends."""

import threading

import numpy as np
import pytest

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from memserve_jax.mempool.transfer import TransferPhase
from tests.helpers.peers import Network
from tests.helpers.pools import cache, compute, kv_of, make_pool, read_kv

PROMPT = list(range(11))  # 2 whole blocks of 4, and a tail of 3
WAIT_S = 60.0


def layout_of(num_kv_heads, dtype="float32"):
    return KVLayout(
        num_layers=2, num_kv_heads=num_kv_heads, block_size_tokens=4, head_dim=8, dtype=dtype
    )


@pytest.mark.parametrize(
    ("num_kv_heads", "from_tp", "to_tp"),
    [(4, 1, 2), (4, 2, 1), (4, 2, 4), (4, 4, 2), (2, 1, 4), (2, 4, 2), (3, 2, 1), (3, 1, 2)],
)
def test_kv_survives_another_parallelism(num_kv_heads, from_tp, to_tp):
    network = Network(SystemClock())
    layout = layout_of(num_kv_heads, "bfloat16")
    sender = make_pool("p0", layout=layout, devices=range(from_tp), network=network)
    receiver = make_pool("d0", layout=layout, devices=range(4, 4 + to_tp), network=network)
    with compute(sender, PROMPT) as lease:
        transfer = sender.transfer(
            lease, receiver.instance, token_ids=PROMPT, private=b"r", timeout_s=WAIT_S
        )
    (arrival,) = network.run()
    assert transfer.phase is TransferPhase.DONE
    assert (transfer.num_blocks, transfer.num_calls) == (3, 1)
    assert transfer.num_bytes == 3 * layout.block_bytes == arrival.num_bytes_moved
    np.testing.assert_array_equal(read_kv(receiver, arrival.lease), kv_of(layout, PROMPT))
    replicas_agree(receiver, layout)
    arrival.lease.close()
    for pool in (sender, receiver):
        assert pool.num_leased == 0
        pool.check()


def replicas_agree(pool, layout):
    copies = pool.pages.k[0].shape[1] // layout.num_kv_heads
    for page in (*pool.pages.k, *pool.pages.v):
        heads = np.asarray(page.astype("float32")).reshape(
            page.shape[0], layout.num_kv_heads, copies, *page.shape[2:]
        )
        np.testing.assert_array_equal(heads, np.broadcast_to(heads[:, :, :1], heads.shape))


def test_swapped_and_reused_blocks_keep_their_bytes_across_a_mesh():
    network = Network(SystemClock())
    layout = layout_of(2)
    pools = [
        make_pool("p0", layout=layout, devices=[0, 1, 2, 3], host_blocks=4, network=network),
        make_pool("d0", layout=layout, devices=[4, 5], host_blocks=4, network=network),
    ]
    prompts = [[turn] * 12 for turn in range(4)]
    for prompt in prompts:  # 3 blocks each: 12 do not fit into 8, nor into 8 + 4 for long
        for sender, receiver in (pools, pools[::-1]):
            with compute(sender, prompt) as lease:
                sender.insert(prompt, lease)
                sender.transfer_with_insert(prompt, lease, receiver.instance, timeout_s=WAIT_S)
            assert network.run() == []
    for pool in pools:
        for prompt in prompts:
            with pool.match_whole(prompt) as found:
                kv = kv_of(layout, prompt)[: len(found)]
                np.testing.assert_array_equal(read_kv(pool, found), kv)
        assert pool.counters.blocks_swapped_out > 0
        pool.check()


def test_device_put_transport_between_two_owner_threads():
    network = Network(SystemClock())
    clock = network.clock
    fabric, layout, woken = LocalFabric(), layout_of(2), threading.Event()
    transport, other = DevicePutTransport(fabric, clock), DevicePutTransport(fabric, clock)
    sender = make_pool("p0", layout=layout, devices=[0], network=network, transports=[transport])
    receiver = make_pool(
        "d0", layout=layout, devices=[1, 2, 3, 4], network=network, transports=[other]
    )
    for pool in (sender, receiver):
        pool.wake = woken.set
    with compute(sender, PROMPT) as lease:
        transfer = sender.transfer_with_insert(
            PROMPT, lease, receiver.instance, private=b"x", timeout_s=WAIT_S
        )
    arrivals = []
    while not transfer.is_ended:
        arrivals += network.run()
        if not network.messages and not transfer.is_ended:
            assert woken.wait(WAIT_S)
            woken.clear()
    assert transfer.error is None
    (arrival,) = arrivals
    np.testing.assert_array_equal(read_kv(receiver, arrival.lease), kv_of(layout, PROMPT))
    assert (transport.counters.num_calls, transport.counters.num_bytes) == (
        1,
        3 * layout.block_bytes,
    )
    arrival.lease.close()
    assert receiver.peek(PROMPT) == 8
    other.close()
    with compute(sender, PROMPT) as lease:
        failed = sender.transfer(lease, receiver.instance, token_ids=[9] * 4, timeout_s=WAIT_S)
    while not failed.is_ended:
        network.run()
        if not network.messages and not failed.is_ended:
            assert woken.wait(WAIT_S)
            woken.clear()
    assert "d0 is not in this process" in str(failed.error)
    transport.close()


def test_pools_that_share_a_device_keep_their_own_bytes():
    network = Network(SystemClock())
    clock = network.clock
    fabric, layout = LocalFabric(), layout_of(2)
    transport, other = DevicePutTransport(fabric, clock), DevicePutTransport(fabric, clock)
    sender = make_pool("p0", layout=layout, network=network, transports=[transport])
    receiver = make_pool("d0", layout=layout, network=network, transports=[other])
    woken = threading.Event()
    sender.wake = woken.set
    with compute(sender, PROMPT) as lease:
        transfer = sender.transfer_with_insert(PROMPT, lease, receiver.instance, timeout_s=WAIT_S)
    while not transfer.is_ended:
        network.run()
        if not network.messages and not transfer.is_ended:
            assert woken.wait(WAIT_S)
            woken.clear()
    cache(sender, [7] * 32)  # overwrites what was sent
    with receiver.match_whole(PROMPT) as found:
        np.testing.assert_array_equal(read_kv(receiver, found), kv_of(layout, PROMPT)[:2])
    transport.close()
    other.close()
