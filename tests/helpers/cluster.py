"""A whole tiny cluster in the test's process, checked for leaks on the way out."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from memserve_jax.client import Client
from memserve_jax.core.config import Config, parse_config
from memserve_jax.core.types import InstanceId
from memserve_jax.launch.background import BackgroundCluster
from memserve_jax.launch.topology import plan_cluster
from memserve_jax.proto import memserve_pb2 as pb
from tests.helpers.shared_steps import sharing_steps

PATIENCE_S = 120.0  # far more than anything on a tiny model takes
TINY_ENGINE = {
    "max_running": 4,
    "chunk_tokens": 64,
    "warm_up": False,
    "compile_cache": None,
    "max_context_tokens": 1024,
}


@dataclass(frozen=True)
class ServedCluster:
    """A running cluster and a client of its scheduler."""

    cluster: BackgroundCluster
    client: Client

    def counters(self) -> dict[str, pb.Counters]:
        """Returns each instance's totals, once nothing is in flight."""
        self.cluster.quiesce(PATIENCE_S)
        return {each.instance: each.counters for each in self.client.status().instances}

    def settle(self) -> None:
        """Waits until nothing is in flight and asserts that nothing leaked."""
        self.cluster.quiesce(PATIENCE_S)
        self.cluster.check()
        leases = {name: pool.num_leased for name, pool in self.cluster.pools.items()}
        assert leases == dict.fromkeys(leases, 0)
        for engine in self.cluster.engines.values():
            assert engine.num_in_flight == 0


def tiny_config(
    path: str, topology: str = "colocated", *, is_apart: bool = False, **sections: object
) -> Config:
    """Returns a config for tests.

    Args:
      path: Of the model.
      topology: As in the config.
      is_apart: Whether each instance has a device of its own. All on one compile once.
      sections: Of the config; a mapping given for one is laid over the defaults.
    """
    values: dict[str, object] = {
        "model": {"path": path, "dtype": "float32"},
        "mempool": {"hbm_blocks": 256, "transfer_timeout_s": 60.0},
        "engine": TINY_ENGINE,
        "scheduler": {"heartbeat_s": 0.1, "heartbeat_timeout_s": 60.0},
        "topology": topology,
        "port": 0,
    }
    for name, section in sections.items():
        default = values.get(name)
        is_partial = isinstance(section, Mapping) and isinstance(default, Mapping)
        values[name] = {**default, **section} if is_partial else section  # type: ignore[dict-item]
    config = parse_config(values)
    if is_apart or config.instances or config.tp > 1:
        return config
    instances = [
        {"instance": plan.instance, "role": plan.role, "devices": [0]}
        for plan in plan_cluster(config).instances
    ]
    return parse_config({**values, "instances": instances})


@contextlib.contextmanager
def running(config: Config) -> Iterator[ServedCluster]:
    """Runs a cluster; at the end it must be quiet, consistent and without a lease."""
    with (
        sharing_steps(),
        BackgroundCluster(config) as cluster,
        Client(cluster.target) as client,
    ):
        served = ServedCluster(cluster, client)
        yield served
        served.settle()


def instance_client(served: ServedCluster, name: str) -> Client:
    """Returns a client of one instance, for calls that go round the scheduler."""
    return Client(served.cluster.instance_targets[InstanceId(name)])
