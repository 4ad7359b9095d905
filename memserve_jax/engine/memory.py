"""What blocks a sequence holds: from the pool on admission, back to it or to the index after."""

from memserve_jax.core.errors import OutOfBlocksError
from memserve_jax.core.types import Tier
from memserve_jax.engine.preload import Preload
from memserve_jax.engine.sequence import Sequence
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.pool import MemPool


class SequenceMemory:
    """The pool, as the batcher and the engine of one instance use it.

    Where the instance caches, admission starts from what the index holds, and what was computed
    goes back into it. Where it does not, blocks are only allocated and freed.
    """

    def __init__(
        self,
        pool: MemPool,
        preload: Preload,
        *,
        block_size_tokens: int,
        caches: bool,
        swaps: bool,
    ):
        self._pool = pool
        self._preload = preload
        self._block_size_tokens = block_size_tokens
        self._caches = caches
        self._swaps = swaps
        self.num_cached_tokens = 0  # found in the index by first attempts

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens need."""
        return -(-num_tokens // self._block_size_tokens)

    def is_ready(self, sequence: Sequence) -> bool:
        """Whether nothing of what a waiting sequence will find here is on its way any more."""
        return self._preload.ready(sequence)

    def acquire(self, sequence: Sequence) -> bool:
        """Leases blocks for all tokens so far and the next one's KV, if one will follow.

        What the index holds of a sequence without blocks is taken from there, HOST blocks
        swapped in, and counts as computed. What is on DISK by now is computed again: files are
        not waited for here.

        Returns:
          Whether there were enough; if not, the sequence is as before.
        """
        wanted = self.blocks_for(min(sequence.num_tokens + 1, sequence.max_kv_tokens))
        if sequence.lease is None:
            return self._acquire_first(sequence, wanted)
        return self._extend(sequence, wanted - sequence.num_blocks)

    def grow(self, sequence: Sequence) -> bool:
        """Leases one more block if the next token's KV needs it; False if there is none."""
        if sequence.num_computed < sequence.num_blocks * self._block_size_tokens:
            return True
        return self._extend(sequence, 1)

    def remember(self, sequence: Sequence, token_ids: list[int]) -> None:
        """Indexes `token_ids`, which the sequence's first blocks hold, where this caches."""
        if self._caches and sequence.lease is not None:
            self._pool.insert(token_ids, sequence.lease, salt=sequence.request.cache_salt)

    def release(self, sequence: Sequence) -> None:
        """Gives the blocks back, and forgets what was computed in them, or is on its way."""
        self._preload.cancel(sequence)
        if sequence.lease is not None:
            self._pool.free_mem(sequence.lease)
        sequence.lease = None
        sequence.num_blocks = sequence.num_computed = 0

    def preempt(self, sequence: Sequence) -> None:
        """Takes a sequence's blocks. Where this caches, whole ones stay as history meanwhile.

        With `swaps` as many historical blocks leave HBM, so that resuming can bring them back.
        """
        num_whole = len(sequence.history) // self._block_size_tokens
        self.remember(sequence, sequence.history)
        self.release(sequence)
        if self._swaps and self._caches and num_whole:
            self._pool.swap_out(num_whole)

    def _acquire_first(self, sequence: Sequence, wanted: int) -> bool:
        if not self._caches:
            if self._pool.num_available < wanted:
                return False
            return self._hold(sequence, self._pool.alloc_mem(wanted), 0)
        salt = sequence.request.cache_salt
        lease = self._pool.match(sequence.token_ids, salt=salt, on_disk=False)
        num_in_hbm = sum(address.tier is Tier.HBM for address in lease.blocks)
        num_cached = len(lease) * self._block_size_tokens
        if self._pool.num_available < wanted - num_in_hbm:
            lease.close()
            return False
        try:
            self._pool.swap_in(lease)
            if wanted > len(lease):
                lease.absorb(self._pool.alloc_mem(wanted - len(lease)))
        except OutOfBlocksError:
            lease.close()
            return False
        return self._hold(sequence, lease, num_cached)

    def _hold(self, sequence: Sequence, lease: Lease, num_cached: int) -> bool:
        sequence.lease = lease
        sequence.num_blocks = len(lease)
        sequence.num_computed = num_cached
        if sequence.cached_tokens is None:
            sequence.cached_tokens = num_cached
            self.num_cached_tokens += num_cached
        return True

    def _extend(self, sequence: Sequence, num_blocks: int) -> bool:
        assert sequence.lease is not None
        if num_blocks <= 0:
            return True
        try:
            sequence.lease.absorb(self._pool.alloc_mem(num_blocks))
        except OutOfBlocksError:
            return False
        sequence.num_blocks += num_blocks
        return True
