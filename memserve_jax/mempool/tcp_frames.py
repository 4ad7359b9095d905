"""What travels on a connection of the `tcp` transport: small checked frames, and raw payloads.

A frame is a prefix (magic, kind, length and CRC-32 of the body) and a body. The sender opens
with HELLO; each PART is followed by its payload, `[num_blocks, layers, sides, K, S, H]` with the
model's true heads, without padding; the receiver answers each part with an ACK, in any order,
once its bytes lie where they stay.
"""

import enum
import struct
import zlib
from dataclasses import dataclass

from memserve_jax.core.errors import MemServeError
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.part import Part

MAGIC = b"MKV1"  # ends in the version of the frames
MAX_BODY_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_REASON_BYTES = 512

_PREFIX = struct.Struct("!4sBHI")
_HELLO = struct.Struct("!Q4I")
_PART = struct.Struct("!Q6IQ?I")
_ACK = struct.Struct("!Q")
PREFIX_BYTES = _PREFIX.size


class FrameError(MemServeError):
    """The other end says what no end of ours would: the connection is of no use."""


class Kind(enum.IntEnum):
    """Of a frame."""

    HELLO = 1
    PART = 2
    ACK = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who sends, and how its KV is laid out."""

    sender: InstanceId
    epoch: int
    layout: KVLayout

    def encode(self) -> bytes:
        """Returns the frame."""
        at = self.layout
        sizes = (at.num_layers, at.num_kv_heads, at.block_size_tokens, at.head_dim)
        body = _HELLO.pack(self.epoch, *sizes) + _name(at.dtype) + _name(self.sender)
        return _frame(Kind.HELLO, body)

    @classmethod
    def decode(cls, body: bytes) -> "Hello":
        """Returns what a body says.

        Raises:
          FrameError: it is not of a HELLO.
        """
        epoch, *sizes = _unpack(_HELLO, body)
        (dtype, sender), rest = _names(body[_HELLO.size :], 2)
        _expect_end(rest)
        layout = KVLayout(
            num_layers=sizes[0],
            num_kv_heads=sizes[1],
            block_size_tokens=sizes[2],
            head_dim=sizes[3],
            dtype=_text(dtype),
        )
        return cls(sender=InstanceId(_text(sender)), epoch=epoch, layout=layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartHeader:
    """A part whose payload follows."""

    number: int  # of the part on this connection
    transfer_id: TransferId
    ticket: bytes
    part: Part
    num_bytes: int
    checksum: int | None = None  # CRC-32 of the payload; None: not computed

    def encode(self) -> bytes:
        """Returns the frame, without the payload."""
        part = self.part
        box = (
            part.first_block,
            part.num_blocks,
            part.first_layer,
            part.num_layers,
            part.first_side,
            part.num_sides,
        )
        has_checksum = self.checksum is not None
        body = _PART.pack(self.number, *box, self.num_bytes, has_checksum, self.checksum or 0)
        return _frame(Kind.PART, body + _name(self.transfer_id) + _name(self.ticket))

    @classmethod
    def decode(cls, body: bytes) -> "PartHeader":
        """Returns what a body says.

        Raises:
          FrameError: it is not of a PART.
        """
        number, *box, num_bytes, has_checksum, checksum = _unpack(_PART, body)
        (transfer_id, ticket), rest = _names(body[_PART.size :], 2)
        _expect_end(rest)
        return cls(
            number=number,
            transfer_id=TransferId(_text(transfer_id)),
            ticket=ticket,
            part=Part(*box),
            num_bytes=num_bytes,
            checksum=checksum if has_checksum else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """A part's end at the receiver."""

    number: int
    refused_because: str = ""  # empty: it lies where it stays, and is delivered next

    def encode(self) -> bytes:
        """Returns the frame."""
        reason = self.refused_because.encode()[:MAX_REASON_BYTES]
        return _frame(Kind.ACK, _ACK.pack(self.number) + reason)

    @classmethod
    def decode(cls, body: bytes) -> "Ack":
        """Returns what a body says.

        Raises:
          FrameError: it is not of an ACK.
        """
        (number,) = _unpack(_ACK, body)
        reason = body[_ACK.size :].decode(errors="replace")
        return cls(number=number, refused_because=reason)


@dataclass(frozen=True, slots=True)
class Prefix:
    """What comes before a body."""

    kind: Kind
    num_bytes: int
    checksum: int

    @classmethod
    def decode(cls, prefix: bytes) -> "Prefix":
        """Returns what `PREFIX_BYTES` bytes say.

        Raises:
          FrameError: they begin no frame.
        """
        magic, kind, num_bytes, checksum = _PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise FrameError(f"got magic {magic!r}, wanted {MAGIC!r}")
        if kind not in set(Kind):
            raise FrameError(f"got a frame of kind {kind}, allowed: {', '.join(map(str, Kind))}")
        if num_bytes > MAX_BODY_BYTES:
            raise FrameError(f"got a body of {num_bytes} bytes, allowed: {MAX_BODY_BYTES}")
        return cls(Kind(kind), num_bytes, checksum)

    def expect(self, body: bytes) -> None:
        """Checks a body that has come after it.

        Raises:
          FrameError: it is damaged.
        """
        if zlib.crc32(body) != self.checksum:
            raise FrameError(f"the body of a {self.kind.name} frame is damaged")


def _frame(kind: Kind, body: bytes) -> bytes:
    assert len(body) <= MAX_BODY_BYTES, "a frame of ours is too long"
    return _PREFIX.pack(MAGIC, kind, len(body), zlib.crc32(body)) + body


def _name(name: str | bytes) -> bytes:
    encoded = name.encode() if isinstance(name, str) else name
    if len(encoded) > MAX_NAME_BYTES:
        raise FrameError(f"a name of {len(encoded)} bytes, allowed: {MAX_NAME_BYTES}")
    return bytes([len(encoded)]) + encoded


def _names(tail: bytes, count: int) -> tuple[list[bytes], bytes]:
    names: list[bytes] = []
    for _ in range(count):
        if not tail or len(tail) < 1 + tail[0]:
            raise FrameError("a name is cut off")
        names.append(tail[1 : 1 + tail[0]])
        tail = tail[1 + tail[0] :]
    return names, tail


def _expect_end(rest: bytes) -> None:
    if rest:
        raise FrameError(f"{len(rest)} bytes too many in a frame")


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"a name is not UTF-8: {error}") from error


def _unpack(form: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < form.size:
        raise FrameError(f"got a body of {len(body)} bytes, wanted at least {form.size}")
    return form.unpack_from(body)
