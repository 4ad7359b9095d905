"""After warm-up a cluster compiles nothing more, and prefill instances have no decode steps."""

import asyncio
import dataclasses

import pytest

from memserve_jax.core.types import InstanceId
from memserve_jax.launch.local import LocalCluster
from memserve_jax.launch.warm_up import moves_kv
from tests.helpers.cluster import tiny_config
from tests.helpers.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def test_all_instances_are_warmed_up_and_told_of(path: str):
    told: list[tuple[int, int, str]] = []
    config = tiny_config(path, "1p1d")
    config = dataclasses.replace(
        config,
        engine=dataclasses.replace(config.engine, warm_up=True, max_running=2, chunk_tokens=32),
    )

    async def run() -> None:
        cluster = await LocalCluster.launch(
            config, progress=lambda done, total, what: told.append((done, total, what))
        )
        try:
            prefill, decode = (cluster.engines[InstanceId(name)] for name in ("p0", "d0"))
            assert decode.counters.compiled_shapes - prefill.counters.compiled_shapes == 2
            assert all(pool.counters.compiled_shapes > 0 for pool in cluster.pools.values())
            assert all(moves_kv(each.instance.parts) for each in cluster.instances.values())
        finally:
            await cluster.stop()

    asyncio.run(run())
    assert told[-1][0] == told[-1][1] == len(told)
    assert any("decode" in what for _, _, what in told)


def test_a_colocated_instance_moves_kv_only_between_tiers(path: str):
    async def run(host_gb: float) -> bool:
        config = tiny_config(path)
        config = dataclasses.replace(
            config, mempool=dataclasses.replace(config.mempool, host_gb=host_gb)
        )
        cluster = await LocalCluster.launch(config)
        try:
            (server,) = cluster.instances.values()
            return moves_kv(server.instance.parts)
        finally:
            await cluster.stop()

    assert not asyncio.run(run(0.0))
    assert asyncio.run(run(0.01))


@pytest.mark.parametrize(
    ("mode", "num_steps", "has_cells"),
    [
        pytest.param("by_layer", 2 * 2, False, marks=pytest.mark.slow),
        ("auto", 2 + 2 * 2, False),
        pytest.param("by_request", 2, True, marks=pytest.mark.slow),
        pytest.param("by_request_aggregated", 2, False, marks=pytest.mark.slow),
    ],
)
def test_transfer_modes_are_warmed_up(path: str, mode: str, num_steps: int, has_cells: bool):
    """Two layers: two groups of one; two rungs of 16 and 32 tokens."""
    config = tiny_config(
        path,
        "1p1d",
        mempool={"transfer_mode": mode, "hbm_blocks": 8},
        engine={"warm_up": True, "max_running": 2, "chunk_tokens": 32, "max_context_tokens": 128},
    )

    async def run() -> None:
        cluster = await LocalCluster.launch(config)
        try:
            prefill, pool = (each[InstanceId("p0")] for each in (cluster.engines, cluster.pools))
            num_copies = 4 * (2 if mode in ("by_layer", "auto") else 1) + has_cells
            assert pool.counters.compiled_shapes == 2 * num_copies  # gather and scatter
            assert prefill.counters.compiled_shapes == num_steps + 2 * num_copies
        finally:
            await cluster.stop()

    asyncio.run(run())
