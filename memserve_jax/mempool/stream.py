"""A transfer whose blocks are handed in while they are being computed (the by-layer mode)."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from memserve_jax.core.types import BlockId
from memserve_jax.mempool.lease import Lease
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.transfer import Transfer
from memserve_jax.mempool.transport import Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """KV that is there once what has been dispatched so far has run."""

    first_layer: int
    num_layers: int
    num_blocks: int  # leading ones on offer
    num_old_blocks: int  # leading ones of these that were there before the last step


@runtime_checkable
class Gather(Protocol):
    """Packs layers of blocks out of the pages. Dispatched, not waited for."""

    def __call__(self, blocks: Sequence[BlockId], *, first_layer: int, num_layers: int) -> Payload:
        """Returns the KV of `blocks`, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Staged:
    """Layers of blocks on offer, packed while they were fresh."""

    part: Part
    payload: Payload


class Stream:
    """A transfer that is fed. From `MemPool.stream`; the pool's owner makes every call.

    Room is asked for at the start; what is fed before the receiver has answered waits here.
    Only what the last step computed is packed meanwhile, so that it can leave the moment the
    answer comes; the rest stays in its blocks until then. Nothing is published before `finish`.

    Attributes:
      transfer: Ends as any other. Fed KV is dropped once it has.
    """

    def __init__(
        self,
        transfer: Transfer,
        *,
        num_blocks: int,
        num_layers: int,
        gather: Gather,
        send: Callable[[Part, Payload], None],
        finished: Callable[[], None],
    ):
        """For the pool alone.

        Args:
          transfer: The transfer it feeds.
          num_blocks: On offer.
          num_layers: L.
          gather: Packs.
          send: Hands a part, counted among the blocks moved, to the transport.
          finished: Called when it is finished.
        """
        self.transfer = transfer
        self._num_blocks = num_blocks
        self._gather = gather
        self._send = send
        self._finished = finished
        self._lease: Lease | None = None  # its own, from the first feeding on
        self._num_held: int | None = None  # leading blocks the receiver has; None: no answer yet
        self._num_fed = [0] * num_layers  # leading blocks
        self._num_left_in_blocks = [0] * num_layers  # of these, not packed before the answer
        self._staged: list[_Staged] = []
        self._is_finished = False

    @property
    def is_answered(self) -> bool:
        """Whether it is known what the receiver lacks."""
        return self._num_held is not None

    @property
    def is_fed(self) -> bool:
        """Whether anything has been fed."""
        return self._lease is not None

    @property
    def is_complete(self) -> bool:
        """Whether nothing more will be sent."""
        return self._is_finished and self.is_answered

    def feed(self, lease: Lease, ready: Ready) -> None:
        """Hands in what is ready, and sends of it what has not been sent.

        Args:
          lease: The blocks on offer, all in HBM; shared until the transfer ends.
          ready: Grows from call to call, for each layer.
        """
        if self.transfer.is_ended:
            return
        if self._lease is None:
            self._lease = lease.share()
        stop_layer = ready.first_layer + ready.num_layers
        start = self._num_fed[ready.first_layer]
        assert set(self._num_fed[ready.first_layer : stop_layer]) == {start}, "layers fed apart"
        assert start <= ready.num_blocks <= self._num_blocks, "fed backwards or too much"
        self._num_fed[ready.first_layer : stop_layer] = [ready.num_blocks] * ready.num_layers
        if self._num_held is not None:
            first = max(start, self._num_held)
            self._send_from_blocks(first, ready.num_blocks, ready.first_layer, ready.num_layers)
            return
        self._unstage(range(ready.first_layer, stop_layer))
        fresh = max(start, min(ready.num_old_blocks, ready.num_blocks))
        for layer in range(ready.first_layer, stop_layer):
            self._num_left_in_blocks[layer] = fresh
        if fresh < ready.num_blocks:
            part = Part(fresh, ready.num_blocks - fresh, ready.first_layer, ready.num_layers)
            self._staged.append(_Staged(part=part, payload=self._pack(part)))

    def unstage(self) -> None:
        """Gives up what has been packed and cannot be sent yet: it stays in its blocks."""
        self._unstage(range(len(self._num_fed)))

    def finish(self) -> None:
        """Says that all has been fed and may be published over there once it has arrived."""
        assert set(self._num_fed) == {self._num_blocks}, "finished before all was fed"
        self._is_finished = True
        self._finished()

    def answered(self, num_held_blocks: int) -> None:
        """For the pool alone: sends what has waited for the answer."""
        self._num_held = num_held_blocks
        kept = [one for one in self._staged if one.part.first_block >= num_held_blocks]
        lost = [one for one in self._staged if one.part.first_block < num_held_blocks]
        for one in lost:  # part of it is there: what is not is packed anew
            self._leave_in_blocks(one.part)
        self._staged = []
        layers = range(len(self._num_fed))
        for stop, run in itertools.groupby(layers, key=self._num_left_in_blocks.__getitem__):
            span = list(run)
            self._send_from_blocks(num_held_blocks, stop, span[0], len(span))
        for one in kept:
            self._send(_moved_by(one.part, num_held_blocks), one.payload)

    def close(self) -> None:
        """For the pool alone: the transfer has ended."""
        self._staged = []
        if self._lease is not None:
            self._lease.close()

    def _send_from_blocks(self, first: int, stop: int, first_layer: int, num_layers: int) -> None:
        if first < stop:
            assert self._num_held is not None
            part = Part(first, stop - first, first_layer, num_layers)
            self._send(_moved_by(part, self._num_held), self._pack(part))

    def _pack(self, part: Part) -> Payload:
        assert self._lease is not None
        blocks = self._lease.block_ids[part.first_block : part.first_block + part.num_blocks]
        return self._gather(blocks, first_layer=part.first_layer, num_layers=part.num_layers)

    def _unstage(self, layers: range) -> None:
        for one in self._staged:
            if one.part.first_layer in layers:
                self._leave_in_blocks(one.part)
        self._staged = [one for one in self._staged if one.part.first_layer not in layers]

    def _leave_in_blocks(self, part: Part) -> None:
        for layer in range(part.first_layer, part.first_layer + part.num_layers):
            self._num_left_in_blocks[layer] = part.first_block + part.num_blocks


def _moved_by(part: Part, num_held: int) -> Part:
    """Returns a part of the blocks on offer as one of those that are moved."""
    return Part(part.first_block - num_held, part.num_blocks, part.first_layer, part.num_layers)
