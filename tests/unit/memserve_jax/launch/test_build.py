"""From a config to an engine: facts, pool sizes, compile cache."""

import dataclasses
import functools
import pathlib
import tempfile
from typing import Any

import jax
import pytest

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import parse_config
from memserve_jax.core.errors import CheckpointError, ConfigError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import Tier
from memserve_jax.launch import build
from memserve_jax.launch.build import (
    CPU_POOL_BYTES,
    Recipe,
    build_parts,
    load_bundles,
    pool_blocks,
    read_model_facts,
    use_compile_cache,
)
from memserve_jax.launch.topology import plan_cluster
from tests.helpers.tiny import tiny_checkpoint

BLOCK_BYTES = 2 * 2 * 2 * 16 * 16 * 4  # L, K and V, K heads, S, H, float32


@functools.cache
def checkpoint() -> str:
    return tiny_checkpoint(pathlib.Path(tempfile.mkdtemp()) / "tiny")


def recipe_of(**sections: Any) -> Recipe:
    config = parse_config({"model": {"path": checkpoint()}, **sections})
    facts = read_model_facts(config)
    plan = plan_cluster(config)
    return Recipe(
        config=config,
        caching=plan.caching,
        path=facts.path,
        card=facts.card,
        tokenizer=facts.tokenizer,
        clock=ManualClock(),
        devices=jax.devices()[: plan.num_devices],
    )


def blocks_of(recipe: Recipe, *, num_sharing: int = 1) -> int:
    plan = plan_cluster(recipe.config).instances[0]
    bundle = load_bundles(recipe, [plan])[plan.devices]
    layout = bundle.config.layout(recipe.config.mempool.block_size_tokens, bundle.dtype)
    assert layout.block_bytes == BLOCK_BYTES
    return pool_blocks(recipe, layout, bundle, num_sharing=num_sharing)


def test_facts_come_without_a_device():
    facts = read_model_facts(parse_config({"model": {"path": checkpoint()}}))
    assert facts.card.max_context_tokens == 1024
    assert facts.tokenizer.decode(facts.tokenizer.encode("hello")) == "hello"
    with pytest.raises(CheckpointError, match="nowhere"):
        read_model_facts(parse_config({"model": {"path": "/nowhere"}}))


def test_a_configured_pool_is_that_big():
    assert blocks_of(recipe_of(mempool={"hbm_blocks": 77})) == 77


def test_a_pool_on_the_cpu_is_modest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_free_bytes", lambda device: 1 << 40)
    assert blocks_of(recipe_of()) == CPU_POOL_BYTES // BLOCK_BYTES


def test_a_pool_on_a_small_machine_leaves_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_free_bytes", lambda device: 400 * BLOCK_BYTES)
    assert blocks_of(recipe_of(mempool={"hbm_fraction": 0.5})) == 50


def test_no_room_for_a_block_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_free_bytes", lambda device: BLOCK_BYTES)
    with pytest.raises(ConfigError, match=f"leaves no block of {BLOCK_BYTES} bytes"):
        blocks_of(recipe_of())


def test_instances_on_the_same_devices_share_their_weights():
    recipe = recipe_of(
        instances=[
            {"instance": "c0", "role": "colocated", "devices": [0]},
            {"instance": "c1", "role": "colocated", "devices": [0]},
            {"instance": "c2", "role": "colocated", "devices": [1]},
        ]
    )
    bundles = load_bundles(recipe, plan_cluster(recipe.config).instances)
    assert set(bundles) == {(0,), (1,)}


def test_the_parts_are_what_was_planned(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    recipe = recipe_of(mempool={"hbm_blocks": 8, "host_gb": 3 * BLOCK_BYTES / 2**30})
    plan = plan_cluster(recipe.config).instances[0]
    bundle = load_bundles(recipe, [plan])[plan.devices]
    parts = build_parts(recipe, plan, bundle, num_sharing=1)
    later = build_parts(recipe, plan, bundle, num_sharing=1)
    assert later.identity == dataclasses.replace(parts.identity, epoch=later.identity.epoch)
    assert later.identity.epoch > parts.identity.epoch
    assert parts.is_quiet
    assert not parts.has_work
    sizes = {tier.tier: tier.num_blocks for tier in parts.pool.status.tiers}
    assert sizes == {Tier.HBM: 8, Tier.HOST: 3}
    assert "c0: KV capacity 128 tokens (8 blocks of 16)" in caplog.text
    for each in (parts, later):
        each.pool.close()


def test_a_disk_tier_lies_in_a_folder_of_the_instances_own(tmp_path: pathlib.Path):
    mempool = {"hbm_blocks": 8, "disk_gb": 3 * 8192 / 2**30, "disk_path": str(tmp_path)}
    recipe = recipe_of(mempool=mempool)
    plan = plan_cluster(recipe.config).instances[0]
    parts = build_parts(recipe, plan, load_bundles(recipe, [plan])[plan.devices], num_sharing=1)
    sizes = {tier.tier: tier.num_blocks for tier in parts.pool.status.tiers}
    assert sizes == {Tier.HBM: 8, Tier.DISK: 2}  # a file is a little more than its block
    assert [path.name for path in tmp_path.iterdir()] == ["c0"]
    parts.pool.close()


def test_pins_leave_room_for_the_longest_request():
    recipe = recipe_of(mempool={"hbm_blocks": 8}, engine={"max_context_tokens": 32})
    layout = KVLayout(
        num_layers=2, num_kv_heads=2, block_size_tokens=16, head_dim=16, dtype="float32"
    )
    assert [build._max_pinned_blocks(recipe, layout, m) for m in (100, 8, 3, 1)] == [25, 2, 0, 0]


def test_a_compile_cache_that_is_set_stays():
    before = jax.config.jax_compilation_cache_dir
    use_compile_cache(parse_config({}))
    use_compile_cache(parse_config({"engine": {"compile_cache": ""}}))
    assert jax.config.jax_compilation_cache_dir == before


def test_a_compile_cache_asked_for_is_made(tmp_path: pathlib.Path):
    before = jax.config.jax_compilation_cache_dir
    folder = tmp_path / "deep" / "cache"
    try:
        use_compile_cache(parse_config({"engine": {"compile_cache": str(folder)}}))
        assert jax.config.jax_compilation_cache_dir == str(folder)
        assert folder.is_dir()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_an_architecture_that_is_not_served_is_named(tmp_path: pathlib.Path):
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel"):
        read_model_facts(parse_config({"model": {"path": str(tmp_path)}}))
