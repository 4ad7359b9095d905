"""The DISK tier: blocks that left memory, kept in files that outlive the process.

It lies beneath the prefix index, which knows blocks in memory alone: what comes after a prefix
in memory is found on DISK by its chained name (`core/block_names.py`). The pool's owner decides at
once and makes every call; files are touched by the tier's own threads. A block that is still
being written can be read: it comes from memory then.
"""

import logging
import pathlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from memserve_jax.core.block_keys import BlockKeys
from memserve_jax.core.block_names import next_name, root_name
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import BlockId, Tier
from memserve_jax.mempool.allocator import BlockAllocator
from memserve_jax.mempool.disk_folder import BlockName, DiskFolder
from memserve_jax.mempool.disk_format import BadFileError, BlockFormat, origin_of
from memserve_jax.mempool.host_tier import Source
from memserve_jax.mempool.index import PrefixNode
from memserve_jax.mempool.node_names import name_of_node

NUM_READERS = 4
MAX_PENDING_BYTES = 256 << 20  # of blocks that wait to be written
MIN_PENDING_BLOCKS = 8
_CLUSTER_BYTES = 4096  # what a file takes is a multiple of it

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskOptions:
    """Where the DISK tier of an instance lies, and how large it may grow."""

    folder: pathlib.Path  # of this instance alone
    num_bytes: int
    model: str  # fingerprint of weights and config: KV of another one is never read


@dataclass(frozen=True, slots=True)
class Reading:
    """Blocks on their way from DISK."""

    names: list[BlockName]
    blocks: "Future[list[np.ndarray]]"  # the leading ones that could be read


def open_disk(
    options: DiskOptions, layout: KVLayout, post: Callable[[Callable[[], None]], None]
) -> "DiskTier | None":
    """Returns the tier with what its folder holds; None, and a line in the log, if it cannot be.

    Args:
      options: Where and how large.
      layout: Of the blocks.
      post: Has the pool's owner do something soon. Any thread.
    """
    try:
        return DiskTier(options, layout, post)
    except OSError as error:
        _log.warning("%s: no DISK tier: %s", options.folder, error)
        return None


class DiskTier:
    """Which blocks lie on DISK, used longest ago first, and the threads that move their bytes.

    Attributes:
      allocator: Of places for files. An indexed place has a file, or soon will.
      changed: Names of blocks that came or went, with whether they were there before; None while
        nobody asks. Who asks takes them away.
      num_written, num_read: Blocks.
      num_refused: Files that were not what their names promise, each taken as a miss.
      num_skipped: Blocks not written because the disk was behind, or takes no more.
    """

    def __init__(
        self,
        options: DiskOptions,
        layout: KVLayout,
        post: Callable[[Callable[[], None]], None],
    ):
        """Opens the folder and takes over what it holds. Raises OSError; see `open_disk`."""
        self._post = post
        self._origin = origin_of(options.model, layout)
        self._format = BlockFormat(self._origin, layout)
        cluster_bytes = -(-self._format.file_bytes // _CLUSTER_BYTES) * _CLUSTER_BYTES
        self.allocator = BlockAllocator(Tier.DISK, options.num_bytes // cluster_bytes)
        self._max_pending = max(MIN_PENDING_BLOCKS, MAX_PENDING_BYTES // layout.block_bytes)
        self._places: OrderedDict[bytes, BlockId] = OrderedDict()  # by name
        self._names: dict[BlockId, BlockName] = {}
        self._after: dict[bytes, set[bytes]] = {}  # names of the blocks that follow one
        self._reserved: set[bytes] = set()
        self._pending: dict[bytes, Source] = {}  # being written; the writer takes them out
        self.changed: dict[bytes, bool] | None = None
        self._failure: Exception | None = None
        self.num_written = self.num_read = self.num_refused = self.num_skipped = 0
        self._folder = DiskFolder(options.folder, self._origin, self._format.file_bytes)
        try:
            self._take_over()
        except OSError:
            self._folder.close()
            raise
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="disk-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="disk-write")

    # names ------------------------------------------------------------------------------

    def name_of(self, node: PrefixNode) -> BlockName:
        """Returns the name of the block of a node that is in the tree."""
        assert node.parent is not None, "a node that has left the tree has no name"
        return BlockName(name_of_node(node), name_of_node(node.parent))

    def names(self, salt: str, keys: BlockKeys) -> list[BlockName]:
        """Returns the names of all blocks of a prompt."""
        names: list[BlockName] = []
        before = root_name(salt)
        for key in keys:
            names.append(BlockName(next_name(before, key), before))
            before = names[-1].name
        return names

    def find(self, salt: str, keys: BlockKeys, path: Sequence[PrefixNode]) -> list[BlockId]:
        """Returns the places of the blocks of `keys` that follow `path`, as far as DISK has them.

        Args:
          salt: Of the prompt.
          keys: Of all its blocks.
          path: Nodes of those that are in memory, from position 0 on.
        """
        places: list[BlockId] = []
        name = name_of_node(path[-1]) if path else root_name(salt)
        for block in range(len(path), len(keys)):
            name = next_name(name, keys[block])
            place = self._places.get(name)
            if place is None:
                break
            places.append(place)
        return places

    def __contains__(self, name: bytes) -> bool:
        """Whether the block of that name is on DISK."""
        return name in self._places

    def __iter__(self) -> Iterator[bytes]:
        """Gives the names of all blocks, used longest ago first."""
        return iter(self._places)

    def touch(self, places: Sequence[BlockId]) -> None:
        """Notes that blocks of one prompt, in order, were used: the last of them goes first."""
        for place in reversed(places):
            self._places.move_to_end(self._names[place].name)

    # writing ----------------------------------------------------------------------------

    def keeps(self, block: BlockName) -> bool:
        """Whether a block is on DISK; if it is, it has been used."""
        if block.name not in self._places:
            return False
        self._places.move_to_end(block.name)
        return True

    @property
    def has_failed(self) -> bool:
        """Whether nothing is written any more."""
        return self._failure is not None

    @property
    def takes_more(self) -> bool:
        """Whether blocks can be written: not while the disk is far behind, or when it failed."""
        is_behind = len(self._pending) + len(self._reserved) >= self._max_pending
        return self._failure is None and not is_behind

    def reserve(self, block: BlockName) -> bool:
        """Finds a place for a block that is not on DISK, which `write` must follow soon.

        Returns:
          Whether it may be written; not so while the disk is far behind, or when it has failed.
        """
        if not self.takes_more or not self._make_place():
            self.num_skipped += 1
            return False
        self._enter(block)
        self._reserved.add(block.name)
        return True

    def write(self, block: BlockName, source: Source) -> None:
        """Has a block written for which there is a place. `source` is called by a thread."""
        is_wanted = block.name in self._reserved and block.name in self._places
        self._reserved.discard(block.name)
        if is_wanted:  # else another took its place meanwhile
            self._pending[block.name] = source
            self._writer.submit(self._write, block, source)

    def date(self, blocks: Sequence[BlockName], used_ns: int) -> None:
        """Notes for a later life when blocks were used: each just before the one before it."""
        self._writer.submit(self._date, blocks, used_ns)  # after the writes that came before

    def delete(self, names: Iterable[bytes]) -> int:
        """Removes blocks and all that follows them; returns how many there were on DISK."""
        num_blocks = 0
        stack = list(names)
        while stack:
            name = stack.pop()
            stack.extend(self._after.get(name, ()))
            place = self._places.get(name)
            if place is not None:
                self._forget(place)
                num_blocks += 1
        return num_blocks

    def is_followed(self, name: bytes, *, but_by: bytes) -> bool:
        """Whether DISK holds a block that follows the one called `name`, and is not `but_by`."""
        return bool(self._after.get(name, set()) - {but_by})

    # reading ----------------------------------------------------------------------------

    def read(self, places: Sequence[BlockId]) -> Reading:
        """Begins to read blocks of one prompt, in order. Give what it returns to `took`."""
        names = [self._names[place] for place in places]
        return Reading(names, self._readers.submit(self._read, names))

    def took(self, reading: Reading) -> list[np.ndarray]:
        """Returns the leading blocks that could be read, and gives up the file that failed.

        Waits where reading has not ended.
        """
        blocks = reading.blocks.result()
        self.num_read += len(blocks)
        if len(blocks) < len(reading.names):
            place = self._places.get(reading.names[len(blocks)].name)
            if place is not None:  # else it was evicted or deleted meanwhile
                self.num_refused += 1
                self._forget(place)
        return blocks

    # life -------------------------------------------------------------------------------

    def close(self) -> None:
        """Writes what is waiting to be written, and ends the threads. The files stay."""
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown()
        self._folder.close()

    def check(self) -> None:
        """Asserts that names and places agree."""
        assert {name: self._names[place].name for name, place in self._places.items()} == {
            name: name for name in self._places
        }, "names and places disagree"
        assert len(self._names) == len(self._places) == self.allocator.num_indexed
        assert all(self.allocator.is_indexed(place) for place in self._names)
        follows = {(b.before, b.name) for b in self._names.values()}
        listed = {(before, name) for before, names in self._after.items() for name in names}
        assert follows == listed, "what follows what is listed wrongly"
        assert not self._reserved, "a place was reserved and not written to"

    def _take_over(self) -> None:
        found = self._folder.scan()
        self.num_refused = found.num_refused
        num_excess = max(0, len(found.blocks) - self.allocator.num_blocks)
        for block in found.blocks[:num_excess]:
            self._folder.remove(block)
        for block in found.blocks[num_excess:]:
            self._enter(block)

    def _make_place(self) -> bool:
        if self.allocator.num_free:
            return True
        for name in self._places:
            while followers := self._after.get(name):  # what nobody finds without it goes first
                name = next(iter(followers))
            place = self._places[name]
            if not self.allocator.is_leased(place):
                self._forget(place)
                return True
        return False

    def _enter(self, block: BlockName) -> None:
        (place,) = self.allocator.alloc(1)
        self.allocator.hold([place])
        self.allocator.release([place])
        if self.changed is not None:
            self.changed.setdefault(block.name, False)
        self._places[block.name] = place
        self._names[place] = block
        self._after.setdefault(block.before, set()).add(block.name)

    def _forget(self, place: BlockId) -> None:
        block = self._names.pop(place)
        if self.changed is not None:
            self.changed.setdefault(block.name, True)
        del self._places[block.name]
        followers = self._after[block.before]
        followers.remove(block.name)
        if not followers:
            del self._after[block.before]
        self.allocator.drop([place])
        self._writer.submit(self._remove, block)  # after the writes that came before

    def _lost(self, block: BlockName) -> None:
        place = self._places.get(block.name)
        if place is not None:
            self._forget(place)

    # on the tier's threads --------------------------------------------------------------

    def _write(self, block: BlockName, source: Source) -> None:
        try:
            if self._failure is None:
                self._folder.write(block, self._format.encode(block.name, source()))
                self.num_written += 1
        except (OSError, RuntimeError) as error:
            self._fail(error)
        if self._failure is not None:
            self._post(lambda: self._lost(block))
        if self._pending.get(block.name) is source:
            del self._pending[block.name]

    def _remove(self, block: BlockName) -> None:
        try:
            self._folder.remove(block)
        except OSError as error:
            self._fail(error)

    def _date(self, blocks: Sequence[BlockName], used_ns: int) -> None:
        for i, block in enumerate(blocks):
            self._folder.touch(block, used_ns - i)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            _log.warning("DISK tier: nothing more is written: %s", error)

    def _read(self, names: Sequence[BlockName]) -> list[np.ndarray]:
        blocks: list[np.ndarray] = []
        now_ns = time.time_ns()  # across restarts: what was used longest ago goes first
        for i, block in enumerate(names):
            source = self._pending.get(block.name)
            try:
                if source is not None:
                    blocks.append(source())
                    continue
                blocks.append(self._format.decode(block.name, self._folder.read(block)))
            except (OSError, BadFileError) as error:
                _log.debug("DISK tier: %s: %s", block.file, error)
                return blocks
            self._folder.touch(block, now_ns - i)
        return blocks
