"""One part on its way over `tcp`: cut into pieces, and done when the last has arrived."""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from memserve_jax.core.clock import Clock
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.tcp_lane import Parcel

# Small enough that a receiver's buffers come from memory it has touched before (an allocator
# gives larger ones back to the system), and that it places one piece while the next comes in.
PIECE_BYTES = 8 << 20


def cut(part: Part, layout: KVLayout) -> Iterator[Part]:
    """Cuts a part into pieces of whole rows, a power of two of them but for the last."""
    row_bytes = part.num_bytes(layout) // part.num_blocks
    num_rows = 1 << (max(1, PIECE_BYTES // row_bytes).bit_length() - 1)
    for row in range(0, part.num_blocks, num_rows):
        yield Part(
            part.first_block + row,
            min(num_rows, part.num_blocks - row),
            part.first_layer,
            part.num_layers,
            part.first_side,
            part.num_sides,
        )


class Sending:
    """The pieces of one part. Any thread may make every call.

    Attributes:
      outcome: Done when every piece has arrived, or failed with the first that cannot.
    """

    def __init__(self, clock: Clock, landed: Callable[[int, float], None]):
        """`landed` is told the bytes and the seconds of a part that has arrived."""
        self.outcome: Future[None] = Future()
        self.outcome.set_running_or_notify_cancel()
        self._clock = clock
        self._landed = landed
        self._lock = threading.Lock()
        self._num_open = 0
        self._num_bytes = 0
        self._since_s = math.inf  # when the first byte went out
        self._is_complete = False
        self._has_ended = False

    def add(self, parcel: Parcel) -> None:
        """Counts a piece in."""
        with self._lock:
            self._num_open += 1
            self._num_bytes += parcel.num_bytes
        parcel.outcome.add_done_callback(lambda done: self._ended(parcel, done))

    def complete(self) -> None:
        """No piece follows."""
        with self._lock:
            self._is_complete = True
        self._settle(None)

    def _ended(self, parcel: Parcel, done: "Future[None]") -> None:
        with self._lock:
            self._num_open -= 1
            if parcel.sent_since_s is not None:
                self._since_s = min(self._since_s, parcel.sent_since_s)
        self._settle(done.exception())

    def _settle(self, error: BaseException | None) -> None:
        with self._lock:
            is_over = error is not None or (self._is_complete and not self._num_open)
            if self._has_ended or not is_over:
                return
            self._has_ended = True
        if error is None:
            self._landed(self._num_bytes, self._clock.now_s() - self._since_s)
            self.outcome.set_result(None)
        else:
            self.outcome.set_exception(error)
