"""What a process shows and wants."""

import pytest

from memserve_jax.core.credentials import (
    PLAIN,
    client_credentials,
    credentials_of,
    is_loopback,
)
from memserve_jax.core.errors import ConfigError
from memserve_jax.core.security_section import SecuritySection
from memserve_jax.core.tls_files import TlsPaths
from tests.helpers.certificates import make_authority, write_keys

KEY = "k" * 16


def test_loopback():
    for host in ("127.0.0.1", "127.9.8.7", "::1", "localhost", "LOCALHOST"):
        assert is_loopback(host)
    for host in ("", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", "*"):
        assert not is_loopback(host)


def test_plain_text_stays_on_loopback():
    for host in ("127.0.0.1", "::1"):
        PLAIN.check_host(host)
    for host in ("0.0.0.0", "", "::", "10.1.1.1", "example"):
        with pytest.raises(ConfigError, match=f"host: got '{host}' without TLS, allowed: .*secure"):
            PLAIN.check_host(host)
        client_credentials(is_insecure=True).check_host(host)
    for target in ("127.0.0.1:1", "[::1]:1", "localhost:50051"):
        PLAIN.check_target(target)
    for target in ("10.1.1.1:1", "[::2]:1", "example:1", "unix:/x", "dns:///example:1", ""):
        with pytest.raises(ConfigError, match="not a loopback address"):
            PLAIN.check_target(target)
        client_credentials(is_insecure=True).check_target(target)


def test_with_tls_every_address_will_do(tmp_path):
    paths = make_authority(tmp_path).issue("a", "a.test")
    credentials = credentials_of(
        SecuritySection(ca=paths.ca, certificate=paths.certificate, key=paths.key)
    )
    credentials.check_host("0.0.0.0")
    credentials.check_target("10.1.1.1:1")
    assert credentials.wants_client_certificates
    assert credentials.access is None, "TLS itself turns strangers away"
    assert credentials.bearer is None


def test_keys_make_access(tmp_path):
    keys = write_keys(tmp_path / "keys", KEY)
    credentials = credentials_of(SecuritySection(cluster_key=keys, api_keys=keys))
    assert credentials.bearer is not None
    assert credentials.bearer() == KEY
    assert credentials.access is not None
    assert credentials.access.api_keys is not None
    with pytest.raises(ConfigError, match=r"security.api_keys: /no: cannot read"):
        credentials_of(SecuritySection(cluster_key=keys, api_keys="/no"))


def test_of_a_client(tmp_path):
    paths = make_authority(tmp_path).issue("a", "a.test")
    credentials = client_credentials(TlsPaths(ca=paths.ca), server_name="n", api_key=KEY)
    assert credentials.tls is not None
    assert credentials.bearer is not None
    assert (credentials.server_name, credentials.bearer()) == ("n", KEY)
    assert KEY not in repr(credentials)
    with pytest.raises(ConfigError, match="tls ca: /no"):
        client_credentials(TlsPaths(ca="/no"))
