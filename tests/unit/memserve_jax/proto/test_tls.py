"""Our credentials as gRPC takes them: for synchronous clients."""

import grpc
import pytest

from memserve_jax.core.credentials import PLAIN, client_credentials
from memserve_jax.core.errors import ConfigError
from memserve_jax.proto.tls import channel_options, open_blocking_channel, server_tls, with_bearer
from tests.helpers.certificates import make_authority


def test_plain_text_needs_nothing():
    assert server_tls(PLAIN) is None
    assert with_bearer(PLAIN) is None
    assert with_bearer(PLAIN, (("a", "b"),)) == (("a", "b"),)
    open_blocking_channel("127.0.0.1:1", PLAIN).close()


def test_plain_text_leaves_the_machine_only_if_told_to():
    with pytest.raises(ConfigError, match=r"192.0.2.1:1: not a loopback address"):
        open_blocking_channel("192.0.2.1:1", PLAIN)
    open_blocking_channel("192.0.2.1:1", client_credentials(is_insecure=True)).close()


def test_a_key_comes_after_what_is_there():
    credentials = client_credentials(api_key="k" * 16)
    assert with_bearer(credentials, (("a", "b"),)) == (
        ("a", "b"),
        ("authorization", "Bearer " + "k" * 16),
    )


def test_a_name_is_checked_where_there_is_tls(tmp_path):
    paths = make_authority(tmp_path).issue("a", "a.test")
    name = ("grpc.ssl_target_name_override", "a.test")
    assert name in channel_options(client_credentials(paths, server_name="a.test"))
    assert name not in channel_options(client_credentials(server_name="a.test"))
    assert isinstance(open_blocking_channel("192.0.2.1:1", client_credentials(paths)), grpc.Channel)
