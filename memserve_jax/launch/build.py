"""From a config to engines: models loaded, pools sized, every choice logged."""

import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax

from memserve_jax.core.clock import Clock
from memserve_jax.core.config import Config, MemPoolSection
from memserve_jax.core.cost_file import fetch_cost_of
from memserve_jax.core.embedded import embedded_model_path
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.model_card import ModelCard, load_card
from memserve_jax.core.tokenizer import Tokenizer, load_tokenizer
from memserve_jax.core.types import CachingMode
from memserve_jax.engine.engine import Engine
from memserve_jax.engine.forecast import Forecast
from memserve_jax.engine.intake import context_limit
from memserve_jax.engine.steps import Steps
from memserve_jax.launch.devices import acquire_devices
from memserve_jax.launch.links import NO_LINKS, Links
from memserve_jax.launch.topology import ClusterPlan, InstancePlan
from memserve_jax.mempool.disk import DiskOptions
from memserve_jax.mempool.pool import MemPool
from memserve_jax.model.bundle import ModelBundle
from memserve_jax.model.config import read_model_config
from memserve_jax.model.fingerprint import fingerprint
from memserve_jax.model.loader import load_model
from memserve_jax.parallel.job import Job
from memserve_jax.parallel.mesh import make_mesh
from memserve_jax.serving.engine_parts import EngineParts, Identity
from pallas_kernels.backend import Backend

CPU_POOL_BYTES = 512 << 20  # of an instance on the CPU, where nothing says how much there is
CPU_POOL_CONTEXTS = 4  # whole contexts that a pool on the CPU holds at least, memory permitting
COMPILE_SECONDS_WORTH_KEEPING = 0.2

Progress = Callable[[int, int, str], None]  # done, total, what
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What all instances of a process have in common."""

    config: Config
    caching: CachingMode
    path: str  # the model's directory
    card: ModelCard
    tokenizer: Tokenizer
    clock: Clock
    devices: Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm]

    @property
    def kernels(self) -> Backend | None:
        """The kernels asked for; None: by platform."""
        name = self.config.engine.kernels
        return None if name == "auto" else Backend(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The part of a model directory that needs no device: read first, so that errors come early."""

    path: str
    card: ModelCard
    tokenizer: Tokenizer


def read_model_facts(config: Config) -> ModelFacts:
    """Returns what `config.model` names; the embedded model where it names none.

    Raises:
      CheckpointError: no such directory, or one that cannot be served.
    """
    path = config.model.path or embedded_model_path()
    read_model_config(path)  # an architecture that is not served is named before all else
    return ModelFacts(path=path, card=load_card(path), tokenizer=load_tokenizer(path))


def use_compile_cache(config: Config) -> None:
    """Makes jax keep what it compiles in `engine.compile_cache`, so that restarts are quick.

    A cache that the process has set up already stays.
    """
    folder = config.engine.compile_cache
    if folder == "" or (folder is None and jax.config.jax_compilation_cache_dir):
        return
    if folder is None:
        folder = str(_user_cache() / "compiled")
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", COMPILE_SECONDS_WORTH_KEEPING)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def open_recipe(
    config: Config, plan: ClusterPlan, facts: ModelFacts, clock: Clock, job: Job | None = None
) -> Recipe:
    """Returns what the instances of `plan` share. Starts jax: compile cache, job, devices.

    Raises:
      ConfigError: there are too few devices.
    """
    use_compile_cache(config)
    return Recipe(
        config=config,
        caching=plan.caching,
        path=facts.path,
        card=facts.card,
        tokenizer=facts.tokenizer,
        clock=clock,
        devices=acquire_devices(plan.num_devices, job),
    )


def load_bundles(
    recipe: Recipe, plans: Sequence[InstancePlan]
) -> Mapping[tuple[int, ...], ModelBundle]:
    """Returns the model on every mesh of `plans`; instances on the same devices share one."""
    bundles: dict[tuple[int, ...], ModelBundle] = {}
    for plan in plans:
        if plan.devices in bundles:
            continue
        started_s = recipe.clock.now_s()
        mesh = make_mesh([recipe.devices[index] for index in plan.devices], plan.tp)
        bundles[plan.devices] = bundle = load_model(
            recipe.path, mesh=mesh, dtype=recipe.config.model.dtype, kernels=recipe.kernels
        )
        _log.info(
            "%s: loaded %s as %s onto devices %s in %.1f s",
            plan.instance,
            recipe.card.name,
            bundle.dtype,
            list(plan.devices),
            recipe.clock.now_s() - started_s,
        )
    return bundles


def build_parts(
    recipe: Recipe,
    plan: InstancePlan,
    bundle: ModelBundle,
    *,
    num_sharing: int,
    links: Links = NO_LINKS,
    steps: Steps | None = None,
) -> EngineParts:
    """Returns the engine and the pool of one instance, not warmed up.

    Args:
      recipe: Of the process.
      plan: Of the instance.
      bundle: The model on its mesh.
      num_sharing: Instances, this one included, whose pools on the same devices are not made yet.
      links: To other pools.
      steps: Compiled steps of such an engine on `bundle`, to share; None: own ones.

    Raises:
      ConfigError: no memory is left for a pool.
    """
    identity = Identity(
        instance=plan.instance,
        epoch=time.time_ns() // 1_000,  # a later life has a greater one
        role=plan.role,
        caching=recipe.caching,
        tp=plan.tp,
        block_size_tokens=recipe.config.mempool.block_size_tokens,
    )
    pool = _build_pool(recipe, identity, bundle, links, num_sharing=num_sharing)
    engine = Engine(
        instance=plan.instance,
        role=plan.role,
        caching=recipe.caching,
        config=recipe.config.engine,
        bundle=bundle,
        pool=pool,
        card=recipe.card,
        tokenizer=recipe.tokenizer,
        clock=recipe.clock,
        mempool=recipe.config.mempool,
        steps=steps,
        forecast=_forecast(recipe.config, plan.tp),
    )
    _log_capacity(identity, engine, pool)
    return EngineParts(
        identity=identity,
        engine=engine,
        pool=pool,
        transports=links.transports,
        card=recipe.card,
        tokenizer=recipe.tokenizer,
        clock=recipe.clock,
    )


def _forecast(config: Config, tp: int) -> Forecast:
    cost = fetch_cost_of(config.scheduler.cost)
    return Forecast(cost, rule=config.mempool.fetch, tp=tp)


def _log_capacity(identity: Identity, engine: Engine, pool: MemPool) -> None:
    _log.info(
        "%s: KV capacity %d tokens (%d blocks of %d), context %d tokens",
        identity.instance,
        pool.num_hbm_blocks * identity.block_size_tokens,
        pool.num_hbm_blocks,
        identity.block_size_tokens,
        engine.max_context_tokens,
    )


def _build_pool(
    recipe: Recipe, identity: Identity, bundle: ModelBundle, links: Links, *, num_sharing: int
) -> MemPool:
    layout = bundle.config.layout(identity.block_size_tokens, bundle.dtype)
    hbm_blocks = pool_blocks(recipe, layout, bundle, num_sharing=num_sharing)
    return MemPool(
        instance=identity.instance,
        epoch=identity.epoch,
        layout=layout,
        mesh=bundle.mesh,
        hbm_blocks=hbm_blocks,
        host_blocks=int(recipe.config.mempool.host_gb * 2**30) // layout.block_bytes,
        disk=_disk_options(recipe.config.mempool, identity, bundle),
        max_pinned_blocks=_max_pinned_blocks(recipe, layout, hbm_blocks),
        max_transfers=recipe.config.mempool.max_transfers,
        channel=links.channel,
        transports=links.transports,
        clock=recipe.clock,
        kernels=recipe.kernels,
    )


def _disk_options(
    mempool: MemPoolSection, identity: Identity, bundle: ModelBundle
) -> DiskOptions | None:
    if not mempool.disk_gb:
        return None
    folder = _user_cache() / "kv" if mempool.disk_path is None else pathlib.Path(mempool.disk_path)
    return DiskOptions(
        folder=folder / identity.instance,
        num_bytes=int(mempool.disk_gb * 2**30),
        model=fingerprint(bundle),
    )


def _max_pinned_blocks(recipe: Recipe, layout: KVLayout, hbm_blocks: int) -> int:
    """Returns how much pins may keep: the longest request must fit beside them."""
    context_tokens = context_limit(recipe.config.engine, recipe.card)
    room = hbm_blocks - layout.blocks_for(context_tokens)
    return max(0, min(int(recipe.config.mempool.pin_fraction * hbm_blocks), room))


def _user_cache() -> pathlib.Path:
    user = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(user) / "memserve-jax"


def pool_blocks(recipe: Recipe, layout: KVLayout, bundle: ModelBundle, *, num_sharing: int) -> int:
    """Returns M, the blocks of an instance's pool: as configured, else what memory allows.

    Raises:
      ConfigError: not one block fits.
    """
    mempool = recipe.config.mempool
    if mempool.hbm_blocks is not None:
        return mempool.hbm_blocks
    devices = list(bundle.mesh.devices.flat)
    free_bytes = min(_free_bytes(device) for device in devices)
    bytes_per_device = layout.block_bytes_on(len(devices)) // len(devices)
    context_blocks = layout.blocks_for(context_limit(recipe.config.engine, recipe.card))
    if devices[0].platform == "cpu":
        wanted = max(CPU_POOL_BYTES // bytes_per_device, CPU_POOL_CONTEXTS * context_blocks)
        affordable = int(free_bytes * mempool.hbm_fraction / 4) // len(recipe.devices)
        num_blocks = min(wanted, affordable // bytes_per_device)
    else:
        num_blocks = int(free_bytes * mempool.hbm_fraction / num_sharing) // bytes_per_device
    if num_blocks < 1:
        raise ConfigError(
            f"mempool.hbm_fraction: got {mempool.hbm_fraction}, which leaves no block of "
            f"{bytes_per_device} bytes in {free_bytes} free bytes"
        )
    return num_blocks


def _free_bytes(device: jax.Device) -> int:  # pyright: ignore[reportInvalidTypeForm]
    """Returns the bytes that may still be allocated on `device`."""
    stats = device.memory_stats()
    if stats is None:  # the CPU does not count
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats["bytes_limit"] - stats["bytes_in_use"]
