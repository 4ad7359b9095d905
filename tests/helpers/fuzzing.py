"""Hostile input of every kind for a live server: calls, metadata, frames, connections.

All of it follows from a seed. Nothing here judges; `Tally` says how every call ended.
"""

import asyncio
import collections
import contextlib
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import Message

from memserve_jax.core.credentials import PLAIN, Credentials
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.server import open_channel

CALL_TIMEOUT_S = 0.5  # of a call that the server may take its time over
HANG_TIMEOUT_S = 60.0  # beyond its deadline no call may last so long
CONCURRENCY = 16
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_TEXTS = (
    "", "\0", "a" * 300, "\u202eevil", "\U0001f4a9" * 40, "%s%n", "../../etc/passwd", "{}",
    "127.0.0.1:1", "[::]:x", "p0", "d0", "c0", "e\u0301" * 50, "\ufeff", "hbm", "tcp", "NaN",
)  # fmt: skip
_NUMBERS = (0, 1, 2, 15, 16, 17, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31), 7)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 0.25)
_UNASKED = {"Drain"}  # a message that is one would end the instance, as it should


@dataclass(frozen=True, slots=True)
class Method:
    """One method of one server."""

    target: str
    path: str
    kind: type[Message]
    is_stream: bool

    @property
    def name(self) -> str:
        """Without its service."""
        return self.path.rpartition("/")[2]


@dataclass(slots=True)
class Tally:
    """How calls ended."""

    codes: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    details: dict[tuple[str, str], str] = field(default_factory=dict)  # of the first of each

    def add(self, method: str, code: str, details: str) -> None:
        """Counts a call."""
        self.codes[method, code] += 1
        self.details.setdefault((method, code), details)

    @property
    def num_calls(self) -> int:
        """All of them."""
        return self.codes.total()

    def of(self, *codes: str) -> dict[tuple[str, str], str]:
        """Returns the calls that ended with one of `codes`, and what the first of them said."""
        return {key: text for key, text in self.details.items() if key[1] in codes}


def methods_of(target: str, *services: str) -> list[Method]:
    """Returns every method of the services (`ControlService`) that are at `target`."""
    found = []
    for name in services:
        service = pb.DESCRIPTOR.services_by_name[name]
        for method in service.methods:
            kind = message_factory.GetMessageClass(method.input_type)
            path = f"/{service.full_name}/{method.name}"
            found.append(Method(target, path, kind, method.server_streaming))
    return found


class Fuzzer:
    """Makes hostile messages and metadata, the same ones for the same seed."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def raw(self, method: Method, others: Sequence[Method]) -> bytes:
        """Returns the bytes of one request."""
        draw, rng = self.random.random(), self.random
        if draw < 0.2:
            raw = rng.randbytes(rng.choice((0, 1, 3, 17, 200, 2000)))
        elif draw < 0.3:
            raw = self.message(rng.choice(others).kind).SerializeToString()
        else:
            raw = self.message(method.kind).SerializeToString()
            if draw < 0.45:
                raw = raw[: rng.randrange(len(raw) + 1)]
            elif draw < 0.6:
                raw = self._flipped(raw)
            elif draw < 0.63:  # a field that nobody knows, large
                raw += b"\xfa\xff\x03" + _varint(50_000) + rng.randbytes(50_000)
            elif draw < 0.66:  # groups within groups, which nobody closes
                raw += b"\x0b" * rng.choice((10, 99, 101, 5000))
        if method.name in _UNASKED:
            with contextlib.suppress(Exception):
                method.kind.FromString(raw)
                return b"\xff" + raw
        return raw

    def message(self, kind: type[Message], depth: int = 0) -> Message:
        """Returns a message with fields that mean nothing, or too much."""
        made: Any = kind()
        for each in made.DESCRIPTOR.fields:
            if self.random.random() < 0.35:
                continue
            if each.is_repeated:
                count = self.random.choice((0, 1, 3, 40))
                if each.message_type is None:
                    getattr(made, each.name).extend(self._value(each) for _ in range(count))
                elif depth < 4:
                    for _ in range(min(count, 3)):
                        sub = message_factory.GetMessageClass(each.message_type)
                        getattr(made, each.name).add().CopyFrom(self.message(sub, depth + 1))
            elif each.message_type is None:
                setattr(made, each.name, self._value(each))
            elif depth < 4:
                sub = message_factory.GetMessageClass(each.message_type)
                getattr(made, each.name).CopyFrom(self.message(sub, depth + 1))
        return made

    def metadata(self) -> list[tuple[str, str | bytes]]:
        """Returns metadata that no client of ours sends; mostly none."""
        rng, draw = self.random, self.random.random()
        if draw < 0.6:
            return []
        if draw < 0.7:
            keys = ("authorization", "traceparent", "x-request-id", "cookie", "te")
            return [
                (rng.choice(keys), rng.choice(("", "x" * 2000, "Bearer", "Bearer " + "k" * 99)))
            ]
        if draw < 0.8:
            return [(f"x-{index}", "v" * 10) for index in range(rng.choice((10, 100)))]
        if draw < 0.9:
            return [("junk-bin", rng.randbytes(rng.choice((1, 500, 4000))))]
        return [("x-large", "v" * rng.choice((7_000, 20_000, 100_000)))]

    def _value(self, each: Any) -> Any:
        rng = self.random
        if each.type == each.TYPE_STRING:
            return rng.choice(_TEXTS)
        if each.type == each.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 8, 64)))
        if each.type == each.TYPE_BOOL:
            return rng.random() < 0.5
        if each.type in (each.TYPE_DOUBLE, each.TYPE_FLOAT):
            if each.name == "timeout_s":
                return rng.choice((0.0, 0.1, -1.0, float("nan")))
            return rng.choice(_FLOATS)
        bits = 64 if each.type in (each.TYPE_INT64, each.TYPE_UINT64) else 32
        low = 0 if each.type in (each.TYPE_UINT32, each.TYPE_UINT64) else -(2 ** (bits - 1))
        high = 2**bits - 1 if low == 0 else 2 ** (bits - 1) - 1
        return rng.choice([number for number in _NUMBERS if low <= number <= high])

    def _flipped(self, raw: bytes) -> bytes:
        flipped = bytearray(raw)
        for _ in range(self.random.randrange(1, 6)):
            if flipped:
                flipped[self.random.randrange(len(flipped))] ^= 1 << self.random.randrange(8)
        return bytes(flipped)


async def attack(
    methods: Sequence[Method], num_calls: int, *, seed: int, credentials: Credentials = PLAIN
) -> Tally:
    """Makes so many hostile calls, some at a time; returns when all have ended.

    Raises:
      TimeoutError: one did not end, long after its deadline.
    """
    fuzzer, tally = Fuzzer(seed), Tally()
    numbers = iter(range(num_calls))

    async def work(channels: dict[str, grpc.aio.Channel]) -> None:
        for number in numbers:
            method = fuzzer.random.choice(methods)
            path = method.path
            if number % 50 == 49:  # unknown, or not even a path
                path = fuzzer.random.choice(("/x/y", "/memserve.v1.GenerateService/No", "/", "/a"))
            raw, metadata = fuzzer.raw(method, methods), fuzzer.metadata()
            call = _call(channels[method.target], method, path)
            label = method.name if path == method.path else "unknown"
            async with asyncio.timeout(HANG_TIMEOUT_S):
                tally.add(
                    label, *await _outcome(call(raw, metadata=metadata, timeout=CALL_TIMEOUT_S))
                )

    targets = {method.target for method in methods}
    channels = {target: open_channel(target, credentials) for target in targets}
    try:
        await asyncio.gather(*(work(channels) for _ in range(CONCURRENCY)))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels.values()))
    return tally


def _call(channel: grpc.aio.Channel, method: Method, path: str) -> Any:
    return channel.unary_stream(path) if method.is_stream else channel.unary_unary(path)


async def _outcome(call: Any) -> tuple[str, str]:
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


def frames(target: str, num_connections: int, *, seed: int) -> None:
    """Opens so many raw connections, says what no HTTP/2 client says, and drops them."""
    rng = random.Random(seed)
    host, _, port = target.rpartition(":")
    open_ones: list[socket.socket] = []
    for number in range(num_connections):
        sock = socket.create_connection((host, int(port)), timeout=20.0)
        open_ones.append(sock)
        with contextlib.suppress(OSError):  # the server may have hung up in the middle
            sock.sendall(_words(rng, number))
        if number % 3 == 0:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)  # half open from here on
        if len(open_ones) > 32:
            open_ones.pop(rng.randrange(len(open_ones))).close()
    for sock in open_ones:
        sock.close()


def _words(rng: random.Random, number: int) -> bytes:
    if number % 8 == 0:
        return b""
    if number % 8 == 1:
        return rng.randbytes(rng.choice((1, 9, 300, 5000)))
    if number % 8 == 2:
        return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    if number % 8 == 3:
        return PREFACE[: rng.randrange(len(PREFACE))]
    if number % 8 == 4:
        return PREFACE + SETTINGS * rng.choice((1, 1000))
    # A frame of any kind on any stream, whole or cut off.
    length = rng.choice((0, 1, 8, 9, 100, 16_384, 1 << 23))
    head = length.to_bytes(3, "big") + bytes([rng.randrange(12), rng.randrange(256)])
    stream = rng.choice((0, 1, 2, 3, 2**31 - 1)).to_bytes(4, "big")
    return PREFACE + SETTINGS + head + stream + rng.randbytes(min(length, 3000))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
