"""The line about bytes that are no message names the field."""

import hypothesis.strategies as st
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.malformed import explain

BAD = b"ok\xff\xfe"


def spoil(message) -> bytes:
    """Returns `message` with BAD in place of the text `@@@@`."""
    return message.SerializeToString().replace(b"@@@@", BAD)


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (pb.GenerateRequest(text="@@@@"), "text"),
        (pb.GenerateRequest(text="fine", cache_salt="@@@@"), "cache_salt"),
        (pb.GenerateRequest(sampling=pb.SamplingParams(stop=["a", "@@@@"])), "sampling.stop[1]"),
        (
            pb.GenerateRequest(
                token_ids=pb.TokenIds(ids=[1, 2]), route=pb.RouteInfo(reason="@@@@")
            ),
            "route.reason",
        ),
        (
            pb.GenerateRequest(
                chat=pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="@@@@")])
            ),
            "chat.messages[0].content",
        ),
        (pb.RegisterRequest(status=pb.InstanceStatus(instance="@@@@")), "status.instance"),
    ],
)
def test_the_string_that_is_no_utf8_is_named(message, path):
    assert explain(type(message), spoil(message)) == f"{path}: got {BAD!r}, allowed: valid UTF-8"


@given(st.binary(max_size=200))
def test_any_bytes_get_one_line(raw):
    try:
        pb.GenerateRequest.FromString(raw)
    except DecodeError:
        line = explain(pb.GenerateRequest, raw)
        assert ": got " in line and "allowed: " in line and "\n" not in line
