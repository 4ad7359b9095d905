"""`delete` where DISK holds what follows, or precedes, what is in memory."""

from memserve_jax.core.block_keys import BlockKeys
from memserve_jax.mempool.disk import DiskTier
from memserve_jax.mempool.index import PrefixIndex


class DiskDelete:
    """One prompt's deletion from DISK: `below`, then the index's own, then `above`."""

    def __init__(self, disk: DiskTier, index: PrefixIndex, salt: str, keys: BlockKeys):
        """Names the blocks of a prompt that has at least one."""
        self._disk = disk
        self._index = index
        self._salt = salt
        self._keys = keys
        self._names = [block.name for block in disk.names(salt, keys)]

    def below(self) -> int:
        """Deletes the prompt's last block and all that follows it; returns how many that were.

        The index must still hold them: what follows on DISK may follow what follows in memory.
        """
        doomed = {self._names[-1]}
        path = self._index.peek(self._salt, self._keys)
        if len(path) == len(self._keys):
            doomed |= {self._disk.name_of(node).name for node in path[-1].below()}
        return self._disk.delete(doomed)

    @property
    def num_shared(self) -> int:
        """Leading blocks of the prompt that another one on DISK goes on from."""
        for num_blocks in range(len(self._names) - 1, 0, -1):
            if self._disk.is_followed(self._names[num_blocks - 1], but_by=self._names[num_blocks]):
                return num_blocks
        return 0

    def above(self, num_kept: int) -> int:
        """Deletes what is not in memory any more either, save the first `num_kept` blocks."""
        num_kept = max(num_kept, len(self._index.peek(self._salt, self._keys)))
        return self._disk.delete(self._names[num_kept : num_kept + 1])
