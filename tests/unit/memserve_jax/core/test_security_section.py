"""What may be configured together."""

import pytest

from memserve_jax.core.config import load_config, parse_config
from memserve_jax.core.errors import ConfigError

TLS = {"ca": "ca.pem", "certificate": "a.pem", "key": "a.key"}


@pytest.mark.parametrize(
    "section",
    [
        {},
        TLS,
        {**TLS, "cluster_name": "c", "api_keys": "keys"},
        {**TLS, "client_certificates": "none", "cluster_key": "key"},
        {"cluster_key": "key", "api_keys": "keys"},
        {"insecure": True},
    ],
)
def test_what_fits_together(section):
    found = parse_config({"security": section}).security
    assert found.has_mutual_tls == (
        "certificate" in section and section.get("client_certificates") != "none"
    )


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"ca": "ca.pem"}, "security.ca: allowed: all of ca, certificate and key"),
        ({"ca": "ca.pem", "certificate": "a.pem"}, "security.key: allowed: all"),
        ({"cluster_name": "c"}, "security.cluster_name: got 'c', allowed with"),
        ({"api_keys": "keys"}, "security.api_keys: allowed with security.cluster_key"),
        ({**TLS, "api_keys": "keys"}, "security.api_keys: allowed with security.cluster_key"),
        (
            {**TLS, "client_certificates": "none"},
            "security.client_certificates: got none, allowed with security.cluster_key",
        ),
        ({"max_streams": 0}, "security.max_streams: got 0"),
        ({"api_key": "keys"}, "security.api_key: unknown key, did you mean api_keys?"),
    ],
)
def test_what_does_not(section, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"security": section})


def test_a_flag_says_insecure():
    assert load_config(None, flags={"security.insecure": True}).security.insecure
    assert not load_config(None, flags={"security.insecure": None}).security.insecure
