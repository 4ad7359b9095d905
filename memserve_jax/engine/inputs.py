"""What a step is told, as one int32 array: a line per row, packed on the host, unpacked in jit.

One upload a step costs less than a dozen small ones. A line holds a row's parameters, then its
block table; floats travel as their bits. The host keeps the lines of all rows from step to step
and changes only what changed.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32

from memserve_jax.core.types import SamplingParams
from memserve_jax.engine.sampling import SamplingRows
from memserve_jax.model.batch import DecodeBatch, PrefillBatch

FROM_DEVICE = -1  # in place of a token id: the one this row sampled last


class Column(enum.IntEnum):
    """Places in a line; the block table starts at `TABLE`."""

    ROW = 0  # R in padding
    TOKEN = 1  # of a single-token row; FROM_DEVICE where the host has not seen it
    POSITION = 2  # of the first new token
    NUM_NEW = 3  # tokens of this step; 0 in padding
    SAMPLES = 4  # 1: a token is drawn after the last of them
    SEED_HIGH = 5
    SEED_LOW = 6
    TOP_K = 7
    WANTS_LOGPROBS = 8
    TEMPERATURE = 9
    TOP_P = 10
    MIN_P = 11
    REPETITION = 12
    PRESENCE = 13
    FREQUENCY = 14
    TABLE = 15


class RowTable:
    """The lines of an engine's rows, on the host."""

    def __init__(self, *, num_rows: int, table_width: int):
        self.lines = np.zeros((num_rows, Column.TABLE + table_width), np.int32)
        self._floats = self.lines.view(np.float32)
        self.lines[:, Column.ROW] = num_rows
        self._padding = self.lines[0].copy()

    @property
    def num_rows(self) -> int:
        """R."""
        return self.lines.shape[0]

    def open(self, row: int, sampling: SamplingParams, seed: int) -> None:
        """Gives `row` to a request. Its blocks, tokens and positions are set by the others."""
        line, floats = self.lines[row], self._floats[row]
        line[Column.ROW] = row
        line[Column.NUM_NEW] = line[Column.SAMPLES] = 0
        line[[Column.SEED_HIGH, Column.SEED_LOW]] = np.array(
            [seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32
        ).view(np.int32)
        line[Column.TOP_K] = sampling.top_k
        line[Column.WANTS_LOGPROBS] = sampling.logprobs is not None
        floats[Column.TEMPERATURE] = sampling.temperature
        floats[Column.TOP_P] = sampling.top_p
        floats[Column.MIN_P] = sampling.min_p
        floats[Column.REPETITION] = sampling.repetition_penalty
        floats[Column.PRESENCE] = sampling.presence_penalty
        floats[Column.FREQUENCY] = sampling.frequency_penalty

    def set_blocks(self, row: int, blocks: Sequence[int], *, first: int = 0) -> None:
        """Writes block ids into the row's table from entry `first` on."""
        start = Column.TABLE + first
        self.lines[row, start : start + len(blocks)] = blocks

    def schedule(
        self, row: int, *, position: int, num_new: int, samples: bool, token: int = FROM_DEVICE
    ) -> None:
        """Says what the next step computes of the row."""
        line = self.lines[row]
        line[Column.TOKEN] = token
        line[Column.POSITION] = position
        line[Column.NUM_NEW] = num_new
        line[Column.SAMPLES] = samples

    def pack_decode(self, rows: Sequence[int], bucket: int) -> np.ndarray:
        """Returns the lines of `rows`, padded to `bucket`: a fresh `[B, C]` array."""
        packed = np.empty((bucket, self.lines.shape[1]), np.int32)
        packed[: len(rows)] = self.lines[np.asarray(rows, np.intp)]
        packed[len(rows) :] = self._padding
        return packed

    def pack_mixed(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], bucket: int
    ) -> np.ndarray:
        """Returns the new tokens, padded to `bucket`, then all lines: a fresh flat array.

        Args:
          rows: The rows of this step, ascending; the others count as padding.
          token_ids: New tokens of each; FROM_DEVICE stands for a row's last sampled one.
          bucket: T.
        """
        num_rows, width = self.lines.shape
        packed = np.zeros(bucket + num_rows * width, np.int32)
        start = 0
        for ids in token_ids:
            packed[start : start + len(ids)] = ids
            start += len(ids)
        lines = packed[bucket:].reshape(num_rows, width)
        lines[:] = self._padding
        chosen = np.asarray(rows, np.intp)
        lines[chosen] = self.lines[chosen]
        return packed


class StepRows(NamedTuple):
    """A packed array's lines, unpacked."""

    token_ids: Int32[Array, " B"]
    positions: Int32[Array, " B"]  # of the first new token
    num_new: Int32[Array, " B"]
    block_tables: Int32[Array, "B P"]
    sampling: SamplingRows


def unpack_lines(lines: Int32[Array, "B C"]) -> StepRows:
    """Returns what the lines say."""
    floats = lax.bitcast_convert_type(lines, jnp.float32)
    positions, num_new = lines[:, Column.POSITION], lines[:, Column.NUM_NEW]
    return StepRows(
        token_ids=lines[:, Column.TOKEN],
        positions=positions,
        num_new=num_new,
        block_tables=lines[:, Column.TABLE :],
        sampling=SamplingRows(
            rows=lines[:, Column.ROW],
            samples=lines[:, Column.SAMPLES] > 0,
            positions=positions + num_new,
            seeds=lax.bitcast_convert_type(
                lines[:, Column.SEED_HIGH : Column.SEED_LOW + 1], jnp.uint32
            ),
            temperature=floats[:, Column.TEMPERATURE],
            top_k=lines[:, Column.TOP_K],
            top_p=floats[:, Column.TOP_P],
            min_p=floats[:, Column.MIN_P],
            repetition=floats[:, Column.REPETITION],
            presence=floats[:, Column.PRESENCE],
            frequency=floats[:, Column.FREQUENCY],
            wants_logprobs=lines[:, Column.WANTS_LOGPROBS] > 0,
        ),
    )


def decode_batch(
    rows: StepRows, last_tokens: Int32[Array, " R"], *, page_size: int, num_pages: int
) -> DecodeBatch:
    """Returns the forward pass's view of single-token rows."""
    is_live = rows.num_new > 0
    sampled = last_tokens.at[rows.sampling.rows].get(mode="clip")
    table_entry = (rows.positions // page_size)[:, None]
    pages = jnp.take_along_axis(rows.block_tables, table_entry, axis=1)[:, 0]
    slots = pages * page_size + rows.positions % page_size
    return DecodeBatch(
        token_ids=jnp.where(rows.token_ids == FROM_DEVICE, sampled, rows.token_ids),
        positions=rows.positions,
        slots=jnp.where(is_live, slots, num_pages * page_size),
        block_tables=rows.block_tables,
        context_lens=jnp.where(is_live, rows.positions + 1, 0),
    )


def mixed_batch(
    token_ids: Int32[Array, " T"],
    rows: StepRows,
    last_tokens: Int32[Array, " R"],
    *,
    page_size: int,
    num_pages: int,
) -> PrefillBatch:
    """Returns the forward pass's view of rows with any number of new tokens; B = R here."""
    ends = jnp.cumsum(rows.num_new)
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
    tokens = jnp.arange(token_ids.shape[0], dtype=jnp.int32)
    row = jnp.searchsorted(ends, tokens, side="right").astype(jnp.int32)  # R in padding
    is_live = tokens < ends[-1]
    row = jnp.where(is_live, row, 0)
    positions = jnp.where(is_live, rows.positions[row] + tokens - starts[row], 0)
    pages = rows.block_tables[row, positions // page_size]
    slots = pages * page_size + positions % page_size
    return PrefillBatch(
        token_ids=jnp.where(token_ids == FROM_DEVICE, last_tokens[row], token_ids),
        positions=positions,
        slots=jnp.where(is_live, slots, num_pages * page_size),
        block_tables=rows.block_tables,
        query_starts=starts,
        context_lens=jnp.where(rows.num_new > 0, rows.positions + rows.num_new, 0),
    )
