"""A cluster beside code that knows no asyncio."""

import threading

import pytest

from memserve_jax.client import Client
from memserve_jax.core.errors import ConfigError
from memserve_jax.launch.background import BackgroundCluster
from tests.helpers.cluster import tiny_config
from tests.helpers.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_it_serves_and_leaves_no_thread(path: str):
    with BackgroundCluster(tiny_config(path, "1p1d")) as cluster, Client(cluster.target) as client:
        assert [each.instance for each in client.status().instances] == ["d0", "p0"]
        assert set(cluster.instance_targets) == set(cluster.pools) == {"p0", "d0"}
        assert {"local-cluster", "engine-p0", "engine-d0"} <= names()
        cluster.quiesce(30.0)
        cluster.check()
    assert not {"local-cluster", "engine-p0", "engine-d0"} & names()


def test_a_cluster_that_cannot_start_leaves_no_thread(path: str):
    with pytest.raises(ConfigError, match="topology"):
        BackgroundCluster(tiny_config(path, "x"))
    assert "local-cluster" not in names()
