"""Small pools, and KV that says which prefix it is the KV of."""

import pathlib
import zlib
from collections.abc import Sequence

import jax
import numpy as np

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.mempool.disk import DiskOptions
from memserve_jax.mempool.disk_format import BlockFormat, origin_of
from memserve_jax.mempool.pool import MemPool
from memserve_jax.parallel.mesh import make_mesh
from tests.helpers.peers import Network, NetworkChannel, NetworkTransport

TINY = KVLayout(num_layers=1, num_kv_heads=1, block_size_tokens=2, head_dim=2, dtype="float32")


def make_pool(
    instance: str = "p0",
    *,
    hbm_blocks: int = 8,
    host_blocks: int = 0,
    layout: KVLayout = TINY,
    devices: Sequence[int] = (0,),
    epoch: int = 1,
    network: Network | None = None,
    **options,
) -> MemPool:
    """A pool on the given emulated devices, joined to the network if there is one."""
    mesh = make_mesh([jax.devices()[i] for i in devices], len(devices))
    if network is not None:
        options.setdefault("channel", NetworkChannel(network, instance))
        options.setdefault("transports", [NetworkTransport(network, instance)])
        options.setdefault("clock", network.clock)
    options.setdefault("clock", ManualClock())
    pool = MemPool(
        instance=InstanceId(instance),
        epoch=epoch,
        layout=layout,
        mesh=mesh,
        hbm_blocks=hbm_blocks,
        host_blocks=host_blocks,
        **options,
    )
    if network is not None:
        network.join(pool)
    return pool


def kv_of(layout: KVLayout, token_ids: Sequence[int], salt: str = "") -> np.ndarray:
    """The KV [n, L, 2, K, S, H] that a prompt has here: each block's follows from its prefix."""
    size = layout.block_size_tokens
    shape = layout.packed_shape(1)[1:]
    blocks = []
    for stop in range(size, len(token_ids) + size, size):
        prefix = f"{salt}/{list(token_ids[:stop])}".encode()
        seed = np.random.default_rng(zlib.crc32(prefix))
        blocks.append(seed.integers(-100, 100, shape).astype(np.float32))
    return np.array(blocks, np.float32).reshape(layout.packed_shape(len(blocks)))


def write_kv(pool: MemPool, blocks: Sequence[int], kv: np.ndarray) -> None:
    """Puts packed blocks into pages, as a forward pass would."""
    if not len(blocks):
        return
    padded = np.zeros((1 << (len(blocks) - 1).bit_length(), *kv.shape[1:]), pool.layout.dtype)
    padded[: len(blocks)] = kv
    pages = pool._memory.pages
    pages.scatter(jax.device_put(padded, pages.packed_sharding), blocks)


def read_kv(pool: MemPool, lease) -> np.ndarray:
    """The packed KV of a lease's blocks, on whichever tiers they are."""
    memory = pool._memory
    layout = pool.layout
    kv = np.zeros(layout.packed_shape(len(lease)), np.float32)
    fetches = (
        (Tier.HBM, memory.pages.gather),
        (Tier.HOST, _host_get(pool)),
        (Tier.DISK, lambda places: np.array(memory.disk.took(memory.disk.read(places)))),
    )
    for tier, fetch in fetches:
        places = [i for i, address in enumerate(lease.blocks) if address.tier is tier]
        if places:
            packed = fetch([lease.blocks[i].block for i in places])
            kv[places] = np.asarray(packed)[: len(places)].astype(np.float32)
    return kv


def compute(pool: MemPool, token_ids: Sequence[int], *, salt: str = ""):
    """What an engine does for a prompt: match, swap in, allocate, compute. Returns the lease."""
    lease = pool.match(token_ids, salt=salt)
    try:
        pool.swap_in(lease)
        num_held = len(lease)
        num_blocks = pool.layout.blocks_for(len(token_ids))
        lease.absorb(pool.alloc_mem(num_blocks - num_held))
    except BaseException:
        lease.close()
        raise
    write_kv(pool, lease.block_ids[num_held:], kv_of(pool.layout, token_ids, salt)[num_held:])
    lease.num_tokens = len(token_ids)
    return lease


def cache(pool: MemPool, token_ids: Sequence[int], *, salt: str = "") -> int:
    """Computes a prompt and leaves it in the index; returns the tokens newly indexed."""
    with compute(pool, token_ids, salt=salt) as lease:
        return pool.insert(token_ids, lease, salt=salt)


def _host_get(pool: MemPool):
    return pool._memory.host.get if pool._memory.host is not None else None


def disk_in(
    path: pathlib.Path, num_blocks: int, *, layout: KVLayout = TINY, model: str = "tiny"
) -> DiskOptions:
    """A DISK tier in a folder, with room for so many blocks."""
    file_bytes = BlockFormat(origin_of(model, layout), layout).file_bytes
    num_bytes = num_blocks * -(-file_bytes // 4096) * 4096
    return DiskOptions(folder=path, num_bytes=num_bytes, model=model)


def files_in(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of blocks in a DISK tier's folder."""
    return sorted(path.rglob("*.safetensors"))
