"""The puller alone: addresses that are nonsense, and tiers it does not serve."""

import threading

import jax
import pytest

from memserve_jax.core.clock import SystemClock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import Tier
from memserve_jax.mempool.jax_pull import Puller
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.parallel.sharding import packed_sharding
from tests.helpers.announcers import DirectAnnouncer
from tests.helpers.ports import TICKET, Landed

LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, block_size_tokens=2, head_dim=2, dtype="float32")
PATIENCE_S = 30.0


class Server:
    """A transfer server whose connections cannot be made."""

    def connect(self, address):
        raise RuntimeError(f"IPv4 address missing colon for port: {address}")


@pytest.fixture
def landed():
    return Landed("d0", LAYOUT, packed_sharding(make_mesh(jax.devices()[:1], 1), 1))


def answer_of(landed, name):
    puller, answers, answered = Puller(landed.port, SystemClock(), Server), [], threading.Event()
    announcement = DirectAnnouncer().made_up(name, LAYOUT, TICKET, timeout_s=PATIENCE_S)
    puller.pull(announcement, lambda error: (answers.append(error), answered.set()))
    assert answered.wait(PATIENCE_S)
    puller.close()
    (answer,) = answers
    return str(answer), puller


def test_an_address_that_cannot_be_reached_is_named(landed):
    landed.expect("t", 4)
    text, puller = answer_of(landed, "t")
    assert "IPv4 address missing colon" in text and not puller._num_pulls


def test_only_device_memory_is_served(landed):
    landed.expect("t", 4, tier=Tier.HOST)
    text, _ = answer_of(landed, "t")
    assert "tier: got host, allowed: hbm" in text
