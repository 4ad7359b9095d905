"""Pools that share nothing but sockets: KV arrives as it left, whatever the two ends are."""

import threading

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import Tier
from memserve_jax.mempool.device_put import DevicePutTransport, LocalFabric
from memserve_jax.mempool.tcp import TcpTransport
from memserve_jax.mempool.transfer import TransferPhase
from tests.helpers.peers import Network
from tests.helpers.pools import cache, compute, kv_of, make_pool, read_kv

PROMPT = list(range(11))  # 2 whole blocks of 4, and a tail of 3
WAIT_S = 60.0
HBM, HOST = Tier.HBM, Tier.HOST


class Ends:
    """A sender p0 and a receiver d0, and what wakes them."""

    def __init__(self, make_transport, num_kv_heads=2, from_tp=1, to_tp=1, dtype="bfloat16"):
        self.network = Network(SystemClock())
        self.woken = threading.Event()
        self.transports = [make_transport(self.network.clock) for _ in range(2)]
        layout = KVLayout(
            num_layers=2, num_kv_heads=num_kv_heads, block_size_tokens=4, head_dim=8, dtype=dtype
        )
        common = {"layout": layout, "host_blocks": 8, "network": self.network}
        devices = [range(from_tp), range(4, 4 + to_tp)]
        self.sender, self.receiver = (
            make_pool(name, devices=on, transports=[transport], **common)
            for name, on, transport in zip(("p0", "d0"), devices, self.transports, strict=True)
        )
        for pool in (self.sender, self.receiver):
            pool.wake = self.woken.set

    def run(self, *transfers):
        """Moves on until the transfers have ended; returns what arrived."""
        arrivals = []
        while True:
            self.woken.clear()
            arrivals += self.network.run()
            if all(transfer.is_ended for transfer in transfers) and not self.network.messages:
                return arrivals
            assert self.woken.wait(WAIT_S)

    def send(self, token_ids, source=HBM, target=HBM, private=b"x"):
        if source is HBM:
            lease = compute(self.sender, token_ids)
        else:
            cache(self.sender, token_ids)
            self.sender.swap_out(len(token_ids) // 4)
            lease = self.sender.match_whole(token_ids)
            token_ids = token_ids[: 4 * len(lease)]
        with lease:
            return self.sender.transfer_with_insert(
                token_ids, lease, "d0", tier=target, private=private, timeout_s=WAIT_S
            )

    def close(self):
        for pool in (self.sender, self.receiver):
            pool.check()
            assert pool.num_leased == 0
        for transport in self.transports:
            transport.close()


def over_tcp(clock):
    return TcpTransport(clock, host="127.0.0.1", timeout_s=WAIT_S)


def over_device_put():
    fabric = LocalFabric()
    return lambda clock: DevicePutTransport(fabric, clock)


def replicas_agree(pool):
    copies = pool.pages.k[0].shape[1] // pool.layout.num_kv_heads
    for page in (*pool.pages.k, *pool.pages.v):
        heads = np.asarray(page.astype("float32")).reshape(
            page.shape[0], pool.layout.num_kv_heads, copies, *page.shape[2:]
        )
        np.testing.assert_array_equal(heads, np.broadcast_to(heads[:, :, :1], heads.shape))


@pytest.mark.parametrize(
    ("num_kv_heads", "from_tp", "to_tp"),
    [(4, 1, 2), (4, 4, 2), (4, 2, 4), (4, 2, 1), (2, 1, 4), (3, 2, 1), (3, 1, 2), (3, 2, 4)],
)
def test_kv_survives_another_parallelism(num_kv_heads, from_tp, to_tp):
    ends = Ends(over_tcp, num_kv_heads, from_tp, to_tp)
    transfer = ends.send(PROMPT)
    (arrival,) = ends.run(transfer)
    assert transfer.phase is TransferPhase.DONE, transfer.error
    layout = ends.sender.layout
    assert (transfer.num_calls, transfer.num_bytes) == (1, 3 * layout.block_bytes)
    np.testing.assert_array_equal(read_kv(ends.receiver, arrival.lease), kv_of(layout, PROMPT))
    replicas_agree(ends.receiver)
    arrival.lease.close()
    ends.close()


@pytest.mark.parametrize("make_transport", [over_tcp, over_device_put()], ids=["tcp", "device_put"])
@pytest.mark.parametrize("source", [HBM, HOST])
@pytest.mark.parametrize("target", [HBM, HOST])
def test_every_pair_of_tiers(make_transport, source, target):
    ends = Ends(make_transport, from_tp=2, to_tp=4)
    transfer = ends.send(PROMPT, source, target)
    (arrival,) = ends.run(transfer)
    assert transfer.error is None
    assert {address.tier for address in arrival.lease.blocks} == {target}
    kv = kv_of(ends.receiver.layout, PROMPT)[: len(arrival.lease)]
    np.testing.assert_array_equal(read_kv(ends.receiver, arrival.lease), kv)
    arrival.lease.close()
    with ends.receiver.match(PROMPT) as found:
        assert found.num_tokens == 8
    ends.close()


TURNS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([12, 8, 5]), *[st.sampled_from([HBM, HOST])] * 2),
    min_size=1,
    max_size=6,
)


@settings(max_examples=10)
@given(turns=TURNS)
def test_whatever_is_sent_is_right_and_nothing_leaks(turns):
    ends = Ends(over_tcp, dtype="float32")
    transfers = []
    for first, length, source, target in turns:
        token_ids = [first] * length
        transfers.append(ends.send(token_ids, source, target, private=b""))
        assert ends.run(transfers[-1]) == []
        if transfers[-1].error is None:
            with ends.receiver.match_whole(token_ids) as found:
                assert len(found) == length // 4
                kv = kv_of(ends.receiver.layout, token_ids)[: len(found)]
                np.testing.assert_array_equal(read_kv(ends.receiver, found), kv)
        else:
            assert "no memory" in str(transfers[-1].error)
    ends.close()


def test_a_receiver_that_closes_fails_the_transfer_and_frees_the_sender():
    ends = Ends(over_tcp)
    first = ends.send(PROMPT, private=b"")
    ends.run(first)
    ends.transports[1].close()
    second = ends.send([9] * 11, private=b"")
    ends.run(second)
    assert second.phase is TransferPhase.FAILED
    assert "tcp to 127.0.0.1" in str(second.error)
    ends.close()
