"""Says what is wrong with bytes that are no message of ours, naming the field where it can."""

import functools
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

_FieldProto = descriptor_pb2.FieldDescriptorProto


def explain(kind: type[Message], raw: bytes) -> str:
    """Returns one line on why `raw` is no message of class `kind`.

    The runtime does not say which string is not UTF-8. So the bytes are read once more, by a
    schema in which strings are bytes.
    """
    name = kind.DESCRIPTOR.full_name
    lenient = _lenient_kind(kind)()
    try:
        lenient.ParseFromString(raw)
    except DecodeError:
        return f"request: got {len(raw)} bytes, allowed: a serialized {name}"
    for path, value in _texts(lenient, kind.DESCRIPTOR):
        try:
            value.decode()
        except UnicodeDecodeError:
            return f"{path}: got {value[:40]!r}, allowed: valid UTF-8"
    return f"request: got {len(raw)} bytes, allowed: a serialized {name}"


@functools.cache
def _lenient_kind(kind: type[Message]) -> type[Message]:
    """Returns the class that reads the same bytes with every string as plain bytes."""
    file = descriptor_pb2.FileDescriptorProto()
    kind.DESCRIPTOR.file.CopyToProto(file)
    for message in file.message_type:
        for field in message.field:
            if field.type == _FieldProto.TYPE_STRING:
                field.type = _FieldProto.TYPE_BYTES
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(kind.DESCRIPTOR.full_name))


def _texts(message: Message, strict: Any, path: str = "") -> Iterator[tuple[str, bytes]]:
    """Yields the path and value of every field of `message` that is a string in `strict`."""
    for field, value in message.ListFields():
        meant = strict.fields_by_name[field.name]
        is_list = not isinstance(value, bytes | Message) and hasattr(value, "__len__")
        items: Any = value if is_list else [value]
        for index, item in enumerate(items):
            name = f"{path}{field.name}[{index}]" if is_list else f"{path}{field.name}"
            if isinstance(item, Message):
                yield from _texts(item, meant.message_type, f"{name}.")
            elif isinstance(item, bytes) and meant.type == meant.TYPE_STRING:
                yield name, item
