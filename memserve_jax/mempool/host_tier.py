"""The bytes of the HOST tier, in whichever kind of host memory the platform is good at.

Both stores take packed blocks that may not have been computed yet and never wait for them on
the way in; a block may be asked for at once.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import BlockId
from memserve_jax.mempool.pages import bucket
from memserve_jax.mempool.stored_rows import StoredRows
from memserve_jax.parallel.sharding import packed_sharding

Source = Callable[[], np.ndarray]  # gives the bytes [L, 2, K, S, H] of one block, on any thread


@runtime_checkable
class HostStore(Protocol):
    """Keeps packed blocks in host memory under their ids."""

    def put(self, blocks: Sequence[BlockId], packed: Float[Array, "n L 2 K S H"]) -> None:
        """Stores `packed[i]` as `blocks[i]`; rows past them are padding."""
        ...

    def get(self, blocks: Sequence[BlockId]) -> Float[Array, "n L 2 K S H"]:
        """Returns stored blocks, packed on the mesh; n is `bucket(len(blocks))`."""
        ...

    def sources(self, blocks: Sequence[BlockId]) -> list[Source]:
        """Returns stored blocks as they are now, whatever is stored under their ids later."""
        ...

    def put_rows(self, blocks: Sequence[BlockId], rows: Shaped[np.ndarray, "n L 2 K S H"]) -> None:
        """Stores `rows[i]`, complete and in host memory, as `blocks[i]`; the rest is padding."""
        ...

    def rows(self, blocks: Sequence[BlockId]) -> StoredRows:
        """Returns stored blocks, to be read in host memory while nothing else is stored there."""
        ...

    def settle(self) -> None:
        """Does what copies that have ended left to do; never waits."""
        ...


def make_host_store(layout: KVLayout, mesh: Mesh, num_blocks: int) -> HostStore:
    """Returns the store that suits the mesh's platform."""
    if mesh.devices.flat[0].platform == "cpu":
        return ArenaStore(layout, mesh, num_blocks)
    return PinnedStore(layout, mesh, num_blocks)


class ArenaStore:
    """One numpy array of all blocks. For CPU, where host memory is device memory."""

    def __init__(self, layout: KVLayout, mesh: Mesh, num_blocks: int):
        self._arena = np.empty(layout.packed_shape(num_blocks), jnp.dtype(layout.dtype))
        self._sharding = packed_sharding(mesh, layout.num_kv_heads)
        self._arriving: collections.deque[tuple[list[BlockId], Array]] = collections.deque()

    def put(self, blocks: Sequence[BlockId], packed: Float[Array, "n L 2 K S H"]) -> None:
        """See `HostStore`; the bytes are copied by a later `settle` or `get`."""
        packed.copy_to_host_async()
        self._arriving.append((list(blocks), packed))

    def get(self, blocks: Sequence[BlockId]) -> Float[Array, "n L 2 K S H"]:
        """See `HostStore`; waits for blocks that are still on their way in."""
        self._expect(blocks)
        ids = np.zeros(bucket(len(blocks)), np.int64)
        ids[: len(blocks)] = blocks
        return jax.device_put(self._arena[ids], self._sharding)

    def sources(self, blocks: Sequence[BlockId]) -> list[Source]:
        """See `HostStore`; never waits."""
        arriving = {
            block: (packed, row)
            for stored, packed in self._arriving
            for row, block in enumerate(stored)
        }  # the latest, where a block was stored twice
        return [
            functools.partial(_row, *arriving[block])
            if block in arriving
            else functools.partial(_itself, self._arena[block].copy())
            for block in blocks
        ]

    def put_rows(self, blocks: Sequence[BlockId], rows: Shaped[np.ndarray, "n L 2 K S H"]) -> None:
        """See `HostStore`; they are copied at once."""
        self._expect(blocks)
        self._arena[blocks] = rows[: len(blocks)]

    def rows(self, blocks: Sequence[BlockId]) -> StoredRows:
        """See `HostStore`; waits for blocks that are still on their way in."""
        self._expect(blocks)
        return StoredRows([self._arena[block] for block in blocks])

    def settle(self) -> None:
        """See `HostStore`."""
        while self._arriving and self._arriving[0][1].is_ready():  # pyright: ignore[reportAttributeAccessIssue]
            self._copy_first()

    def _expect(self, blocks: Sequence[BlockId]) -> None:
        wanted = set(blocks)
        while any(not wanted.isdisjoint(arriving) for arriving, _ in self._arriving):
            self._copy_first()  # in order: a block may have been stored twice

    def _copy_first(self) -> None:
        blocks, packed = self._arriving.popleft()
        self._arena[blocks] = np.asarray(packed)[: len(blocks)]


class PinnedStore:
    """One pinned array a block, so that copies to and from the device are plain DMA."""

    def __init__(self, layout: KVLayout, mesh: Mesh, num_blocks: int):
        on_device = packed_sharding(mesh, layout.num_kv_heads)
        self._device = NamedSharding(mesh, PartitionSpec(*on_device.spec[1:]))  # of one block
        self._host = self._device.with_memory_kind("pinned_host")
        self._blocks: list[Array | None] = [None] * num_blocks  # each L 2 K S H
        self._split = jax.jit(lambda packed: tuple(packed), out_shardings=self._device)
        self._stack = jax.jit(lambda *blocks: jnp.stack(blocks), out_shardings=on_device)

    def put(self, blocks: Sequence[BlockId], packed: Float[Array, "n L 2 K S H"]) -> None:
        """See `HostStore`."""
        singles = self._split(packed)[: len(blocks)]
        for block, single in zip(blocks, jax.device_put(singles, self._host), strict=True):
            self._blocks[block] = single

    def get(self, blocks: Sequence[BlockId]) -> Float[Array, "n L 2 K S H"]:
        """See `HostStore`; never waits.

        Raises:
          KeyError: a block was never stored.
        """
        stored = [self._stored(block) for block in blocks]
        padded = stored + stored[:1] * (bucket(len(blocks)) - len(blocks))
        return self._stack(*jax.device_put(padded, self._device))

    def sources(self, blocks: Sequence[BlockId]) -> list[Source]:
        """See `HostStore`; never waits."""
        return [functools.partial(np.asarray, self._blocks[block]) for block in blocks]

    def put_rows(self, blocks: Sequence[BlockId], rows: Shaped[np.ndarray, "n L 2 K S H"]) -> None:
        """See `HostStore`; the device's own memory has no part in it."""
        singles = list(rows[: len(blocks)])
        for block, single in zip(blocks, jax.device_put(singles, self._host), strict=True):
            self._blocks[block] = single

    def rows(self, blocks: Sequence[BlockId]) -> StoredRows:
        """See `HostStore`; never waits.

        Raises:
          KeyError: a block was never stored.
        """
        return StoredRows([self._stored(block) for block in blocks])

    def _stored(self, block: BlockId) -> Array:
        stored = self._blocks[block]
        if stored is None:
            raise KeyError("a HOST block was read before it was stored")
        return stored

    def settle(self) -> None:
        """See `HostStore`: nothing is left to do."""


def row_sources(packed: Float[Array, "n L 2 K S H"], num_blocks: int) -> list[Source]:
    """Returns the first rows of packed blocks, which may be still being computed."""
    packed.copy_to_host_async()
    return [functools.partial(_row, packed, row) for row in range(num_blocks)]


def _row(packed: Array, row: int) -> np.ndarray:
    return np.asarray(packed)[row]


def _itself(block: np.ndarray) -> np.ndarray:
    return block
