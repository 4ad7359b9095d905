"""What an instance tells of its cache: blocks stored and removed, by name and tier."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memserve_jax.core.block_names import NAME_BYTES
from memserve_jax.core.types import Tier

MAX_UPDATE_BLOCKS = 4096  # told of in one message: a few milliseconds of whoever hears it


@dataclass(frozen=True, slots=True)
class KVEvent:
    """Blocks of one tier that came, or went. Names lie one after another, `NAME_BYTES` each.

    Of blocks in one prefix the first comes first; the first of all is used last.
    """

    tier: Tier
    stored: bytes = b""
    removed: bytes = b""

    @property
    def num_blocks(self) -> int:
        """Blocks told of."""
        return (len(self.stored) + len(self.removed)) // NAME_BYTES


@dataclass(frozen=True, slots=True)
class KVEvents:
    """Consecutive events of one life of an instance, none with more than `MAX_UPDATE_BLOCKS`."""

    first: int  # number of the first: they are counted from 0 on
    events: tuple[KVEvent, ...]

    @property
    def after(self) -> int:
        """The number of the event that comes next."""
        return self.first + len(self.events)


@dataclass(frozen=True, slots=True)
class KVSnapshot:
    """All that an instance holds, used longest ago first."""

    next_event: int  # number of the first event that is not in it
    events: tuple[KVEvent, ...]  # `stored` ones only


def split_names(packed: bytes) -> list[bytes]:
    """Returns the names in `packed`, whose length is a multiple of `NAME_BYTES`."""
    return [packed[at : at + NAME_BYTES] for at in range(0, len(packed), NAME_BYTES)]


def in_pieces(names: Sequence[bytes]) -> Iterator[bytes]:
    """Gives the names packed, no more than one message may have in each piece."""
    for at in range(0, len(names), MAX_UPDATE_BLOCKS):
        yield b"".join(names[at : at + MAX_UPDATE_BLOCKS])
