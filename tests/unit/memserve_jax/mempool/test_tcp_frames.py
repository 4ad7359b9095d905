"""Frames: what is said arrives as said; anything else is no frame."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.tcp_frames import (
    MAX_BODY_BYTES,
    MAX_REASON_BYTES,
    PREFIX_BYTES,
    Ack,
    FrameError,
    Hello,
    Kind,
    PartHeader,
    Prefix,
)

LAYOUT = KVLayout(num_layers=2, num_kv_heads=3, block_size_tokens=4, head_dim=8, dtype="bfloat16")
HELLO = Hello(sender="p0", epoch=2**50, layout=LAYOUT)
HEADER = PartHeader(
    number=2**40,
    transfer_id="p0-1-7",
    ticket=b"\x00\xff",
    part=Part(5, 2, 1, 1, 1, 1),
    num_bytes=2**33,
    checksum=0,
)
FRAMES = [
    (Kind.HELLO, HELLO),
    (Kind.PART, HEADER),
    (
        Kind.PART,
        PartHeader(number=0, transfer_id="", ticket=b"", part=Part(0, 1, 0, 2), num_bytes=1),
    ),
    (Kind.ACK, Ack(number=3)),
    (Kind.ACK, Ack(number=3, refused_because="too late, ünd more")),
]


def read(frame):
    prefix = Prefix.decode(frame[:PREFIX_BYTES])
    body = frame[PREFIX_BYTES:]
    assert len(body) == prefix.num_bytes
    prefix.expect(body)
    return prefix.kind, body


@pytest.mark.parametrize(("kind", "said"), FRAMES)
def test_what_is_said_arrives(kind, said):
    assert read(said.encode()) == (kind, read(said.encode())[1])
    assert type(said).decode(read(said.encode())[1]) == said


@pytest.mark.parametrize(("kind", "said"), FRAMES[:3])
def test_a_body_that_is_cut_or_too_long_is_refused(kind, said):
    _, body = read(said.encode())
    for stop in range(len(body)):
        with pytest.raises(FrameError):
            type(said).decode(body[:stop])
    with pytest.raises(FrameError, match="1 bytes too many"):
        type(said).decode(body + b"\x00")


def test_long_reasons_are_cut_and_long_names_are_no_names():
    reason = "x" * 10_000
    assert (
        Ack.decode(read(Ack(number=1, refused_because=reason).encode())[1]).refused_because
        == (reason[:MAX_REASON_BYTES])
    )
    with pytest.raises(FrameError, match="a name of 300 bytes, allowed: 255"):
        PartHeader(
            number=0, transfer_id="x" * 300, ticket=b"", part=HEADER.part, num_bytes=1
        ).encode()
    with pytest.raises(FrameError, match="not UTF-8"):
        PartHeader.decode(read(HEADER.encode())[1].replace(b"p0-1-7", b"p0-\xff-7"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda frame: b"HTTP" + frame[4:], "got magic b'HTTP'"),
        (lambda frame: frame[:4] + b"\x09" + frame[5:], "a frame of kind 9"),
        (lambda frame: frame[:5] + b"\xff\xff" + frame[7:], f"allowed: {MAX_BODY_BYTES}"),
        (lambda frame: frame[:-1] + b"\x00", "the body of a PART frame is damaged"),
    ],
)
def test_a_damaged_frame_is_refused(damage, message):
    with pytest.raises(FrameError, match=message):
        read(damage(HEADER.encode()))


@given(noise=st.binary(max_size=80))
def test_noise_is_refused_or_means_something(noise):
    """Whatever comes, nothing but `FrameError` is raised."""
    for kind in (Hello, PartHeader, Ack):
        try:
            said = kind.decode(noise)
        except FrameError:
            continue
        assert isinstance(said, kind)
