"""The bytes of a part as they travel by `tcp`, and the memory that they leave and come into.

They travel with all heads together. Memory that is cut by heads, as that of several devices is,
is read and written through a room so small that it stays in the processor's cache: what passes
costs little beside the socket's own copy, and goes on while the other end does its share.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jaxtyping import Array, Shaped

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.host_buffers import HEADS, Heads, Shards, aligned, heads_at, over
from memserve_jax.mempool.pages import bucket
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.stored_rows import StoredRows
from memserve_jax.mempool.transport import Payload
from memserve_jax.mempool.wire_shards import pieces_of

PASSAGE_BYTES = 256 << 10  # of the room that cut memory is read and written through


def is_at_hand(payload: Payload) -> bool:
    """Whether a payload is one piece of host memory that nobody has to wait for."""
    if not isinstance(payload, jax.Array):
        return isinstance(payload, np.ndarray)
    array: Any = payload  # `is_ready` is in no stub
    is_one = payload.is_fully_replicated and _is_on_cpu(payload.sharding)
    return is_one and not payload.is_deleted() and array.is_ready()


def departing(payload: Payload, part: Part, first_row: int) -> Iterator[list[memoryview]]:
    """Returns the bytes of some rows: buffers that are to be sent before the next are asked for.

    Waits for the payload's computation, and fails if that did, before it returns.

    Args:
      payload: Holds more, it may be.
      part: Which cells the rows hold.
      first_row: Of the payload, that is the part's first.

    Raises:
      ValueError: the payload has fewer rows.
    """
    stop = first_row + part.num_blocks
    if isinstance(payload, StoredRows):
        arrays = payload.rows(first_row, stop)
        _expect_rows(len(arrays), part)
        return iter([[_bytes(array) for array in arrays]])
    if isinstance(payload, jax.Array) and not payload.is_fully_replicated:
        rows = [np.asarray(piece)[first_row:stop] for piece in pieces_of(payload)]
    else:
        rows = [np.asarray(payload)[first_row:stop]]
    _expect_rows(len(rows[0]), part)
    return iter([[_bytes(rows[0])]]) if len(rows) == 1 else _joined(rows)


class Landing:
    """Room for a part: filled once, in order, then settled, then given away. One thread has it.

    On CPU devices and in HOST the bytes lie where they stay once the room is full.
    """

    def __init__(self, part: Part, layout: KVLayout, sharding: NamedSharding | None):
        """Takes memory for a part on `sharding`; None: in host memory, without padding."""
        whole, dtype = part.shape(layout), jnp.dtype(layout.dtype)
        self._sharding = sharding
        self._num_cells = part.num_cells
        self._num_heads = whole[HEADS]
        self._settled: Array | None = None
        cuts: list[Heads] = [(0, self._num_heads)]
        self._shape = whole
        if sharding is not None:
            self._shape = (bucket(part.num_blocks), *whole[1:])
            if _is_on_cpu(sharding):
                cuts = sorted(set(heads_at(self._shape, sharding).values()))
        outer, inner = self._shape[:HEADS], self._shape[HEADS + 1 :]
        self._shards: Shards = {
            (start, stop): aligned((*outer, stop - start, *inner), dtype) for start, stop in cuts
        }

    def rooms(self) -> Iterator[memoryview]:
        """Gives memory to be filled with the part's next bytes before more is asked for."""
        cut = {heads: _cells(shard) for heads, shard in self._shards.items()}
        width = sum(cells.shape[1] for cells in cut.values())
        if len(cut) == 1:
            (cells,) = cut.values()
            yield _bytes(cells[: self._num_cells])
            return
        head_bytes = width // self._num_heads
        passage = _passage(width)
        for first in range(0, self._num_cells, len(passage)):
            held = passage[: self._num_cells - first]
            yield _bytes(held)
            for (start, stop), cells in cut.items():
                taken = held[:, start * head_bytes : stop * head_bytes]
                np.copyto(cells[first : first + len(held)], taken)

    def settle(self) -> None:
        """Takes the bytes, all of which are here, to where they stay."""
        if self._sharding is not None and not _is_on_cpu(self._sharding):
            (rows,) = self._shards.values()
            self._settled = jax.block_until_ready(jax.device_put(rows, self._sharding))

    def landed(self) -> Shaped[Array, "n L C K S H"] | Shaped[np.ndarray, "n L C K S H"]:
        """Returns the part, settled."""
        if self._sharding is None:
            (rows,) = self._shards.values()
            return rows
        if self._settled is not None:
            return self._settled
        return over(self._shards, self._shape, self._sharding)


def _expect_rows(num_rows: int, part: Part) -> None:
    if num_rows != part.num_blocks:
        raise ValueError(f"{num_rows} rows for a part of {part.num_blocks}")


def _joined(shards: Sequence[np.ndarray]) -> Iterator[list[memoryview]]:
    """Gives the rows of shards that lie side by side, through one small room."""
    cut = [_cells(shard) for shard in shards]
    num_cells, width = len(cut[0]), sum(cells.shape[1] for cells in cut)
    passage = _passage(width)
    for first in range(0, num_cells, len(passage)):
        held = passage[: num_cells - first]
        start = 0
        for cells in cut:
            stop = start + cells.shape[1]
            np.copyto(held[:, start:stop], cells[first : first + len(held)])
            start = stop
        yield [_bytes(held)]


def _passage(width_bytes: int) -> Shaped[np.ndarray, "c b"]:
    return np.empty((max(1, PASSAGE_BYTES // width_bytes), width_bytes), np.uint8)


def _cells(rows: Shaped[np.ndarray, "n L C k S H"]) -> Shaped[np.ndarray, "c b"]:
    """Returns rows as bytes, side by side of layer by layer of block; a view if it can be."""
    num_cells = math.prod(rows.shape[:HEADS])
    return np.ascontiguousarray(rows).reshape(num_cells, -1).view(np.uint8)


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _is_on_cpu(sharding: Sharding) -> bool:
    return next(iter(sharding.device_set)).platform == "cpu"
